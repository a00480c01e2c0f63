"""Scripts people run, each also a `zigpass` subcommand of the same name."""
