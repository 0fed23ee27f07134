// SPDX-License-Identifier: MIT
// What hopper_forward.cu is compiled for, and what follows from it for host and device alike: sizes
// of tiles, places in shared memory. Three axes always, outermost first; those before the problem's
// first have one token.
#ifndef VECINA_CUDA_KERNELS_HOPPER_CONFIG_H_
#define VECINA_CUDA_KERNELS_HOPPER_CONFIG_H_

#include "core/window.h"  // NA_FN: for the host and for kernels

namespace vecina::cuda {

struct HopperConfig {
  int dtype;            // vecina_dtype, f16 or bf16
  int query_key_dtype;  // the same, or e4m3
  int rank;
  // Multiples of a product's depth, 32 bytes: the tensors' columns, or some more that are zeros.
  int head_dim, head_dim_value;
  int output_columns;  // that head_dim_value has
  // With three axes: one sample, in whose maps heads stand where the batch would. Then columns
  // beyond a head's are zeros, as they are with fewer axes.
  bool has_heads_for_batch;
  // Warpgroups that compute. Each has a box of at most 64 queries, of packed_heads heads one after
  // another; the boxes of a block lie side by side along pair_axis.
  int warpgroups;
  int pair_axis;
  int query_box[3];
  int packed_heads;  // query heads of one key head in a box; more than 1: a multiple of 8 tokens
  int key_box[3];    // keys of a tile
  // A warpgroup that sees no more than so many rows, along pair_axis, of its last tiles multiplies
  // these alone, which are a tile's first keys; 0: all of every tile.
  int short_rows;
  int stages;              // tiles of key and of value in shared memory
  bool is_ping_pong;       // warpgroups take turns at issuing their products
  bool has_output_buffer;  // else output leaves through the query's memory, or as below
  // The next queries' first products do not wait for the last ones' output, which leaves through
  // the output buffer or straight from registers (head_dim_value a multiple of 32). Not with
  // additional tokens.
  bool is_chained;
  bool keeps_shift;  // a tile's maximum is looked for only if the last shift does not do
  bool is_causal;    // along some axis; which, comes with the run
  bool is_strided;   // queries share windows
  bool is_dilated;
  bool has_additional;  // tokens
  bool has_lengths;     // samples of different length
};

// The query's memory is free when its last product is done.
NA_FN bool hopper_frees_query_early(const HopperConfig& config) {
  return config.has_output_buffer || config.is_chained;
}

inline constexpr int kHopperRows = 64;   // of a warpgroup's product
inline constexpr int kHopperDepth = 16;  // values that enter one product

inline constexpr int kHopperDepthBytes = 32;  // of a row that enter one product
inline constexpr int kHopperValueBytes = 2;   // of an element of value and output
NA_FN int hopper_round_up(int n, int to) { return (n + to - 1) / to * to; }
// Of an element of query and key.
NA_FN int hopper_key_bytes(const HopperConfig& config) {
  return config.query_key_dtype == config.dtype ? kHopperValueBytes : 1;
}
// head_dim with the columns that are zeros.
NA_FN int hopper_padded(int head_dim, int element_bytes) {
  return hopper_round_up(head_dim, kHopperDepthBytes / element_bytes);
}
// Shared memory holds rows in boxes of so many bytes, over which they are swizzled.
NA_FN int hopper_box_bytes(int row_bytes) {
  return row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : 32;
}
inline constexpr int kHopperSwizzledRows = 8;  // after which the pattern is repeated

// Keys that are multiplied, for so many that are wanted: columns of a product. With three axes the
// half of a step in depth that would be left takes registers that are not there.
NA_FN int hopper_columns(const HopperConfig& config, int keys) {
  return keys <= kHopperDepth ? kHopperDepth
                              : hopper_round_up(keys, config.rank == 3 ? kHopperDepth : 8);
}

// Sizes and byte offsets of everything in a block's shared memory.
struct HopperLayout {
  int query_tokens, query_rows, key_rows;  // of the boxes; rows are tokens of all packed heads
  int score_keys, tile_keys;               // key_rows, padded to columns of products; to depth
  int short_keys;                          // of a short tile, not padded; 0: there are none
  int mask_words;                          // of a query's bits for the columns of one thread
  int table[3], table_words;               // of hopper_mask.cuh: where an axis' words begin; of all
  int place[3], places;                    // of queries along an axis: where they begin; of all
  int query, query_bytes;                  // one for each warpgroup
  int output, output_bytes;                // the query's if there is no buffer
  int key, key_bytes, value, value_bytes;  // one for each stage
  int padded_end;                          // all rows that boxes may leave unwritten lie before
  int bounds, tiles, masks, tables, interior, barriers;
  int query_full, query_empty, key_full, value_full, key_empty, value_empty;  // barriers
  int bytes;
};

NA_FN HopperLayout hopper_layout(const HopperConfig& config) {
  HopperLayout layout = {};
  layout.query_tokens = config.query_box[0] * config.query_box[1] * config.query_box[2];
  layout.query_rows = layout.query_tokens * config.packed_heads;
  layout.key_rows = config.key_box[0] * config.key_box[1] * config.key_box[2];
  layout.score_keys = hopper_columns(config, layout.key_rows);
  layout.tile_keys = hopper_round_up(layout.key_rows, kHopperDepth);
  layout.short_keys = layout.key_rows / config.key_box[config.pair_axis] * config.short_rows;
  layout.mask_words = (layout.tile_keys / 4 + 31) / 32;
  for (int a = 3 - config.rank; a < 3; ++a) {
    layout.table[a] = layout.table_words;
    layout.table_words += (config.key_box[a] + 1) * 4 * layout.mask_words;
    layout.place[a] = layout.places;
    layout.places += config.query_box[a] * (a == config.pair_axis ? config.warpgroups : 1);
  }
  const int row_bytes = config.head_dim * hopper_key_bytes(config);
  const int value_row_bytes = config.head_dim_value * kHopperValueBytes;
  const bool holds_query_alone = row_bytes > value_row_bytes || hopper_frees_query_early(config);
  layout.query_bytes = kHopperRows * (holds_query_alone ? row_bytes : value_row_bytes);
  layout.output_bytes =
      config.has_output_buffer ? kHopperRows * value_row_bytes : layout.query_bytes;
  layout.key_bytes = layout.tile_keys * row_bytes;
  layout.value_bytes = layout.tile_keys * value_row_bytes;

  int at = 0;
  layout.query = at;
  at += config.warpgroups * layout.query_bytes;
  layout.output = config.has_output_buffer ? at : layout.query;
  if (config.has_output_buffer) at += config.warpgroups * layout.output_bytes;
  layout.key = at;
  at = hopper_round_up(at + config.stages * layout.key_bytes,
                       kHopperSwizzledRows * hopper_box_bytes(value_row_bytes));
  layout.value = at;
  at += config.stages * layout.value_bytes;
  layout.padded_end = at;
  layout.bounds = at;  // 8 bytes for each place: its window along the axis
  at += hopper_round_up(layout.places * 8, 16);
  layout.tiles = at;  // 64 bytes for each warpgroup: what it computes now
  at += config.warpgroups * 64;
  layout.masks = at;
  at += config.stages * layout.places * 16 * layout.mask_words;
  layout.tables = at;
  at += layout.table_words * 4;
  layout.interior = at;  // a word for each stage
  at += hopper_round_up(config.stages * 4, 8);
  layout.query_full = at;
  layout.query_empty = layout.query_full + config.warpgroups * 8;
  layout.key_full = layout.query_empty + config.warpgroups * 8;
  layout.value_full = layout.key_full + config.stages * 8;
  layout.key_empty = layout.value_full + config.stages * 8;
  layout.value_empty = layout.key_empty + config.stages * 8;
  layout.bytes = layout.value_empty + config.stages * 8;
  return layout;
}

// Registers of a thread that computes and of one that does not: 504 for the threads of one slot of
// three warpgroups, 512 of four.
NA_FN int hopper_registers(const HopperConfig& config) {
  const HopperLayout layout = hopper_layout(config);
  if (config.warpgroups == 3) return layout.tile_keys >= 128 ? 160 : 152;
  if (layout.tile_keys * 3 / 4 + config.head_dim_value / 2 > 190) return 232;
  return 224;
}
NA_FN int hopper_spare_registers(const HopperConfig& config) {
  const int registers = hopper_registers(config);
  if (config.warpgroups == 3) return registers == 160 ? 32 : 56;
  return 504 - 2 * registers;
}

inline constexpr int kHopperAllBoxes = -1;

struct HopperTurn {
  int block;
  int box;  // of the block's, one for each warpgroup; or all of them
};

// What one of `grid` multiprocessors computes, a block each round. Its place moves on by one every
// round: else, where `grid` is a multiple of the blocks along an axis, it would meet the same
// border every time, and borders have fewer or more tiles. If the last round's blocks are few,
// each of their boxes is computed alone, which takes about half of a block's time.
struct HopperTurns {
  int grid, warpgroups;
  int whole, end;  // turns of whole blocks; of all
  int first = 0, place;

  NA_FN HopperTurns(int multiprocessor, int grid_, int blocks, int warpgroups_)
      : grid(grid_), warpgroups(warpgroups_), whole(blocks), end(blocks), place(multiprocessor) {
    const int left = blocks % grid;
    if (left * warpgroups <= grid) {
      whole = blocks - left;
      end = whole + left * warpgroups;
    }
  }
  // False: no more.
  NA_FN bool next(HopperTurn* turn) {
    const int number = first + place;
    if (number >= end) return false;
    first += grid;
    place = place + 1 == grid ? 0 : place + 1;
    const int beyond = number - whole;
    *turn = {number, kHopperAllBoxes};
    if (beyond >= 0) *turn = {whole + beyond / warpgroups, beyond % warpgroups};
    return true;
  }
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_CONFIG_H_
