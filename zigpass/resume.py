"""A state file, so that an interrupted measurement goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError

FILE_VERSION = 2


class StateFile:
    """Finished measurements by stage and name, on disk after every one.

    The file has one JSON line that says what it belongs to, then a line [stage, name, value] for every measurement. So
    keeping one takes the same time whatever was kept before, and a line cut short by a crash costs that line only.

    Args:
        path: the file, made when missing; None keeps everything in memory only.
        key: what the measurements depend on (model, text, settings). Another key is another measurement.

    Attributes:
        resumed: the file held measurements already.

    Raises:
        ZigpassError: the file is damaged, or was made with another key.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._key = dict(key)
        self._stages: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            self._read(self._path)
        self.resumed = bool(self._stages)

    def stage(self, name: str) -> Mapping[str, Any]:
        """What is finished of one stage."""
        return self._stages.get(name, {})

    def keep(self, stage: str, name: str, measure: Callable[[], Any]) -> Any:
        """The measurement if it is finished; otherwise what `measure` returns, which is kept."""
        if name not in self.stage(stage):
            self.put(stage, name, measure())
        return self.stage(stage)[name]

    def put(self, stage: str, name: str, value: Any) -> None:
        """Keep one finished measurement (anything JSON can hold).

        Raises:
            ZigpassError: the file cannot be written.
        """
        self._stages.setdefault(stage, {})[name] = value
        if self._path is None:
            return
        line = json.dumps([stage, name, value]) + "\n"
        try:
            if self._path.exists():
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
            else:
                temporary = Path(f"{self._path}.part")  # so that the file is never there without its first line
                header = json.dumps({"version": FILE_VERSION, "key": self._key}) + "\n"
                temporary.write_text(header + line, encoding="utf-8")
                temporary.replace(self._path)
        except OSError as error:
            raise ZigpassError(f"{self._path}: cannot keep the state of the calibration ({error})") from error

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            header, *lines = [json.loads(line) for line in whole.splitlines()]
            version, key = header["version"], header["key"]
            if version == FILE_VERSION:
                for stage, name, value in lines:
                    self._stages.setdefault(stage, {})[name] = value
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ZigpassError(f"{path}: not the state of a calibration ({error}); delete it to start over") from error
        if version != FILE_VERSION:
            raise ZigpassError(
                f"{path}: state file version {version}, this zigpass reads version {FILE_VERSION}; delete it to start"
                " over"
            )
        differing = sorted(name for name in {*key, *self._key} if key.get(name) != self._key.get(name))
        if differing:
            raise ZigpassError(
                f"{path}: the state of another calibration ({', '.join(differing)} differ); delete it or name another"
            )
        if len(whole) < len(content):
            os.truncate(path, len(whole))  # what follows must not continue the broken line
