// SPDX-License-Identifier: MIT
// What the halo kernels share: a block owns a tile of tokens and keeps in shared memory the rows of
// all partners that they meet, one plane of the outermost axis (rank 3) at a time. A warp's 16 rows,
// a box of the tile times heads of one key head, meet the union of their windows, those partners
// that are outside of a row's own window masked.
//
// Any order of the summed index is right if both factors have it: a thread reads columns 8q to
// 8q + 7 of each 32 (q = lane % 4) of the rows that it multiplies over columns, 16 bytes a load.
#ifndef VECINA_CUDA_KERNELS_HALO_CUH_
#define VECINA_CUDA_KERNELS_HALO_CUH_

#include "owners.cuh"

namespace vecina::cuda {

static_assert(kRows == 16, "of a warp: a thread has two");
inline constexpr int kColumns = kKeyColumns;
static_assert(kValueColumns == kColumns, "both sides of a stage are alike");
// Short rows lie close together, their 16 bytes in an order that depends on the row. Long ones lie
// an odd number of 16 bytes apart, which takes no arithmetic for each load.
inline constexpr bool kIsPadded = kColumns == 128;
inline constexpr int kRowBytes = 2 * kColumns + (kIsPadded ? 16 : 0);
inline constexpr int kChunks = kColumns / 8;
static_assert(kColumns == 32 || kColumns == 64 || kIsPadded, "as the swizzle has it");

// Rank 3 walks planes. A box of long rows may lie in two, a thread's rows in one each.
inline constexpr bool kHasPlanes = kConfig.halo_size[0] > 1;
static_assert(!kHasPlanes || kConfig.additional_tokens == 0, "");
static_assert(kConfig.box[0] == 1 || (kConfig.box[0] == 2 && kHasPlanes && !kConfig.of_keys), "");
inline constexpr int kHaloRows = kConfig.halo_size[1] * kConfig.halo_size[2];
inline constexpr int kStageRows = kHaloRows + kAdditional;
inline constexpr int kUnion = kConfig.union_size[1] * kConfig.union_size[2];
inline constexpr int kList = kUnion + kAdditional;
inline constexpr int kTiles = (kList + 15) / 16 * 2;  // of 8 partners
static_assert(kTiles <= 16, "a word of bits says which of two rows' partners are visible");
inline constexpr int kSideBytes = kStageRows * kRowBytes;

// Where a row's 16 bytes lie within a side of a stage; no two of 8 neighbouring rows, nor of 4
// neighbouring chunks of two rows, share banks.
VECINA_DEVICE unsigned place_of(int row, int chunk) {
  if constexpr (kIsPadded) return static_cast<unsigned>(row * kRowBytes + chunk * 16);
  const int turn = kRowBytes == 64 ? row / 2 % 4 : row % 2 * 4 + row / 2 % 4;
  return static_cast<unsigned>(row * kRowBytes + (chunk ^ turn) * 16);
}

// A warp's box; its origin is that of the union in the halo.
VECINA_DEVICE Box make_box(const Tile& tile) {
  Box box = first_owners(tile);
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    const int first = na_min(box.first[a], tile.groups.length[a] - 1);
    box.origin[a] = na_min(partners_of(a, tile.groups.along(a), first).begin - tile.halo[a].begin,
                           kConfig.halo_size[a] - kConfig.union_size[a]);
    if (kHasPlanes && a == 0) box.origin[a] = 0;
  }
  return box;
}

// Bits 2j and 2j + 1: whether the row sees partners 2q and 2q + 1 of tile j of a plane's list.
VECINA_DEVICE unsigned visible_bits(const Row& row, int q) {
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int number = 8 * j + 2 * q + e;
      const int at[3] = {0, number / kConfig.union_size[2], number % kConfig.union_size[2]};
      bool is_visible = number < kUnion;
#pragma unroll
      for (int a = na_max(kFirstAxis, 1); a < 3; ++a) {
        is_visible =
            is_visible && at[a] >= row.visible[a].begin && at[a] < row.visible[a].end;
      }
      if (kAdditional > 0) is_visible = is_visible || (number >= kUnion && number < kList);
      bits |= static_cast<unsigned>(is_visible) << (2 * j + e);
    }
  }
  return bits;
}
VECINA_DEVICE bool is_visible(unsigned bits, int j, int e) { return (bits >> (2 * j + e)) & 1; }
// Else every bit is taken out of its word ahead of the loop over items, and kept in another.
VECINA_DEVICE void keep_together(unsigned (&bits)[2]) {
  asm volatile("" : "+r"(bits[0]), "+r"(bits[1]));
}

// A thread's two rows, lane / 4 and 8 more.
struct Rows {
  unsigned bits[2];  // visible_bits
  bool is_owner[2];
  Range planes[2];  // that they see

  VECINA_DEVICE bool sees_plane(int i, int plane) const {
    return !kHasPlanes || (plane >= planes[i].begin && plane < planes[i].end);
  }
  VECINA_DEVICE bool sees_plane(int plane) const {
    return sees_plane(0, plane) || (kConfig.box[0] > 1 && sees_plane(1, plane));
  }
};
// Calls note(i, row) for each.
template <class Note>
VECINA_DEVICE Rows make_rows(const Tile& tile, const Box& box, Note note) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Rows rows = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Row row = make_row(tile, box, lane / 4 + 8 * i);
    rows.bits[i] = visible_bits(row, lane % 4);
    rows.is_owner[i] = row.is_owner;
    if constexpr (kHasPlanes) rows.planes[i] = row.visible[0];
    note(i, row);
  }
  return rows;
}

// Row of a stage of a place in the list; places beyond it are its last again.
VECINA_DEVICE int row_of(const Box& box, int number) {
  number = na_min(number, kList - 1);
  if (kAdditional > 0 && number >= kUnion) return kHaloRows + number - kUnion;
  return (box.origin[1] + number / kConfig.union_size[2]) * kConfig.halo_size[2] + box.origin[2] +
         number % kConfig.union_size[2];
}

// Where a thread's rows lie in a side, two numbers a word.
struct Places {
  unsigned by_columns[kTiles / 2];  // of load_shared: the thread's row of each tile
  unsigned by_rows[(kTiles + 2) / 4];  // of load_transposed: of each two tiles
};
static_assert(kSideBytes < 65536 * 16, "");
VECINA_DEVICE Places make_places(const Box& box) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Places places = {};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const unsigned place = place_of(row_of(box, 8 * j + lane / 4), lane % 4) / 16;
    places.by_columns[j / 2] |= place << (16 * (j % 2));
  }
#pragma unroll
  for (int j = 0; j < kTiles / 2; ++j) {
    const unsigned place = place_of(row_of(box, 16 * j + lane % 16), lane / 16) / 16;
    places.by_rows[j / 2] |= place << (16 * (j % 2));
  }
  return places;
}
VECINA_DEVICE unsigned unpack_place(unsigned word, int which) {
  return which == 0 ? (word & 0xffffu) * 16 : word >> 16 << 4;
}

// Offsets in a sample and head of the rows of a plane; -1 for those that no owner meets, which are
// zeros in every stage and never copied.
struct HaloTable {
  int2 offset[kStageRows];  // in the first tensor and in the second
};
VECINA_DEVICE void fill_table(const Tile& tile, const HaloRows& first, const HaloRows& second,
                              HaloTable& table) {
  for (int row = static_cast<int>(threadIdx.x); row < kHaloRows; row += kThreads) {
    int at[3] = {0, row / kConfig.halo_size[2], row % kConfig.halo_size[2]};
    int2 offset = make_int2(0, 0);
    bool is_there = true;
#pragma unroll
    for (int a = na_max(kFirstAxis, 1); a < 3; ++a) {
      at[a] += tile.halo[a].begin;
      is_there = is_there && at[a] < tile.halo[a].end;
      const int token = na_group_to_axis(at[a], kConfig.dilation[a], tile.groups.residue[a]);
      offset.x += token * first.token[a];
      offset.y += token * second.token[a];
    }
    table.offset[row] = is_there ? offset : make_int2(-1, -1);
  }
}
// By the threads that filled the table, before they meet.
template <int kStageBytes>
VECINA_DEVICE void clear_missing(const HaloTable& table, uint4* stages) {
  for (int row = static_cast<int>(threadIdx.x); row < kHaloRows; row += kThreads) {
    if (table.offset[row].x >= 0) continue;
    for (int stage = 0; stage < kConfig.stages; ++stage) {
      for (int side = 0; side < 2; ++side) {
        char* rows = reinterpret_cast<char*>(stages) + stage * kStageBytes + side * kSideBytes;
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          *reinterpret_cast<uint4*>(rows + place_of(row, chunk)) = make_uint4(0, 0, 0, 0);
        }
      }
    }
  }
}

// Starts the copies of a plane of both tensors into a stage. Places after the halo are for the
// additional tokens.
struct Sources {
  const char *first, *second;  // rows of the head
  const char *additional_first, *additional_second;
  int additional_step_first, additional_step_second;
};
VECINA_DEVICE int plane_token(const Tile& tile, int plane) {
  return na_group_to_axis(tile.halo[0].begin + plane, kConfig.dilation[0], tile.groups.residue[0]);
}
VECINA_DEVICE Sources plane_sources(const HaloParams& params, const Tile& tile, int batch, int head,
                                    const HaloRows& first, const HaloRows& second, int plane) {
  Sources from = {head_rows(first, batch, head), head_rows(second, batch, head), nullptr, nullptr,
                  0, 0};
  if constexpr (kConfig.rank == 3) {
    const long long token = plane_token(tile, plane);
    from.first += token * first.token[0];
    from.second += token * second.token[0];
  }
  if constexpr (kAdditional > 0) {
    from.additional_first = head_rows(params.additional_key, batch, head);
    from.additional_second = head_rows(params.additional_value, batch, head);
    from.additional_step_first = params.additional_key.token[2];
    from.additional_step_second = params.additional_value.token[2];
  }
  return from;
}
// A thread copies one chunk of rows that lie so far apart.
inline constexpr int kRowsAtOnce = kThreads / kChunks;
inline constexpr bool kTurnsAlike = kRowsAtOnce % 8 == 0;  // of place_of, in all of them
VECINA_DEVICE void load_stage(const Sources& from, const HaloTable& table, unsigned stage) {
  constexpr int kSteps = (kHaloRows + kRowsAtOnce - 1) / kRowsAtOnce;
  constexpr int kAtOnce = 4;  // offsets are read before their copies begin
  constexpr int kUnroll = kSteps <= 3 * kAtOnce ? 3 : 1;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int first_row = static_cast<int>(threadIdx.x) / kChunks;
  const char* first = from.first + chunk * 16;
  const char* second = from.second + chunk * 16;
  const unsigned place = stage + place_of(first_row, chunk);
#pragma unroll kUnroll
  for (int n = 0; n < kSteps; n += kAtOnce) {
    int2 offsets[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int step = (n + i) * kRowsAtOnce;
      const bool is_there = step + kRowsAtOnce <= kHaloRows || first_row + step < kHaloRows;
      offsets[i] = is_there ? table.offset[first_row + step] : make_int2(-1, -1);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int step = (n + i) * kRowsAtOnce;
      if (step >= kHaloRows) continue;
      const unsigned to =
          kTurnsAlike ? place + step * kRowBytes : stage + place_of(first_row + step, chunk);
      const int2 offset = offsets[i];
      copy_chunk_if(offset.x >= 0, to, first + static_cast<unsigned>(offset.x));
      copy_chunk_if(offset.x >= 0, to + kSideBytes, second + static_cast<unsigned>(offset.y));
    }
  }
  if constexpr (kAdditional > 0) {
    for (int token = first_row; token < kAdditional; token += kRowsAtOnce) {
      const unsigned to = stage + place_of(kHaloRows + token, chunk);
      copy_chunk(to, from.additional_first + token * from.additional_step_first + chunk * 16, true);
      copy_chunk(to + kSideBytes,
                 from.additional_second + token * from.additional_step_second + chunk * 16, true);
    }
  }
}

// A thread's columns of two rows in global memory, and the same as first factors of products.
struct TwoRows {
  unsigned words[2][kColumns / 8];

  VECINA_DEVICE void load(const char* row, const char* next_row) {
    const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
      load_words<16>(row + 64 * m + 16 * q, words[0] + 4 * m);
      load_words<16>(next_row + 64 * m + 16 * q, words[1] + 4 * m);
    }
  }
};
struct Factors {
  unsigned words[kColumns / 16][4];  // of 16 columns: of the first row, the second, the first, ...

  VECINA_DEVICE void make(const TwoRows& rows) { make_factors(rows.words, words); }
};

// Gradients load the owners' rows of the next item ahead, unless longer ones fill the registers.
inline constexpr bool kLoadsAhead = kColumns == 32;

// sum = rows . partners of tile j of a side, over columns.
VECINA_DEVICE void multiply_columns(const Factors& rows, unsigned side, const Places& places, int j,
                                    float (&sum)[4]) {
  const unsigned place = unpack_place(places.by_columns[j / 2], j % 2);
  sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
  for (int m = 0; m < kColumns / 32; ++m) {
    const uint4 words = load_shared(side + (place ^ static_cast<unsigned>(64 * m)));
    const unsigned(&first)[4] = rows.words[2 * m];
    const unsigned(&second)[4] = rows.words[2 * m + 1];
    multiply(Element{}, sum, first[0], first[1], first[2], first[3], words.x, words.y);
    multiply(Element{}, sum, second[0], second[1], second[2], second[3], words.z, words.w);
  }
}

// sums += weights * partners of tiles 2j and 2j + 1 of a side.
VECINA_DEVICE void multiply_rows(const float (&first)[4], const float (&second)[4], unsigned side,
                                 const Places& places, int j, float (&sums)[kColumns / 8][4]) {
  const unsigned a0 = pack(Element{}, first[0], first[1]);
  const unsigned a1 = pack(Element{}, first[2], first[3]);
  const unsigned a2 = pack(Element{}, second[0], second[1]);
  const unsigned a3 = pack(Element{}, second[2], second[3]);
  const unsigned place = unpack_place(places.by_rows[j / 2], j % 2);
#pragma unroll
  for (int c = 0; c < kColumns / 16; ++c) {
    unsigned words[4];
    load_transposed(words, side + (place ^ static_cast<unsigned>(32 * c)));
    multiply(Element{}, sums[2 * c], a0, a1, a2, a3, words[0], words[1]);
    multiply(Element{}, sums[2 * c + 1], a0, a1, a2, a3, words[2], words[3]);
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HALO_CUH_
