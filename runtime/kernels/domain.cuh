// The columns that a block looks at in one pass, its domain, counted in words of 32. A unit is a group of scales, or a part
// of one where groups are long; a lane scans a unit, and the active columns of a unit fill whole steps.
#pragma once

DEVICE int column_of(int v) { return GROUP == GROUP_PADDED ? v : v / GROUP_PADDED * GROUP + v % GROUP_PADDED; }

DEVICE bool exists(int v, int k) {
  return column_of(v) < k && (GROUP == GROUP_PADDED || v % GROUP_PADDED < GROUP);
}

// A block takes an equal share of the flat space of tiles; `b * tiles / blocks` says which tiles, however many words a
// tile has, so that a consumer of the sums need not know it. A share may be empty at either end.
// The launcher refuses a space where the products would leave 31 bits.
DEVICE int first_block(int tile, int blocks, const Divider& tiles) { return divide(tile * blocks, tiles); }
DEVICE int num_blocks(int tile, int blocks, const Divider& tiles) {
  return divide((tile + 1) * blocks - 1, tiles) - divide(tile * blocks, tiles) + 1;
}

// The domain of a pass: whole units of the first piece, then of the second. A unit that a piece shares with another block
// has words that are not the block's; the block's own are counted beside.
struct Domain {
  int first_unit;   // of the first piece
  int first_units;  // 0: the first piece is empty
  int own_first;    // own words of the first piece
  int own;
  int from;         // word of its tile where the first piece begins

  DEVICE explicit Domain(const Cut& cut) {
    first_unit = cut.from / UNIT_WORDS;
    first_units = cut.first ? (cut.from + cut.first - 1) / UNIT_WORDS - first_unit + 1 : 0;
    own_first = cut.first;
    own = cut.first + cut.second;
    from = cut.from;
  }

  // Of a word of the domain: which word of its tile it is.
  DEVICE int word_of_tile(int word) const {
    return word + (word < first_units * UNIT_WORDS ? first_unit : -first_units) * UNIT_WORDS;
  }

  // Of the i-th own word: the same, and which word of the domain it is.
  DEVICE int own_word_of_tile(int i) const { return i + (i < own_first ? from : -own_first); }
  DEVICE int own_word(int i) const {
    return i + (i < own_first ? from - first_unit * UNIT_WORDS : first_units * UNIT_WORDS - own_first);
  }
};
