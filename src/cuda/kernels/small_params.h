// SPDX-License-Identifier: MIT
// What the kernels for small problems are given at run time. Included by the host and by NVRTC.
// Where there are three axes always, those before the problem's first have one token; SmallParams
// has the problem's own, innermost first.
//
// What every problem needs comes first and is small: a kernel of 2 us feels each line that the
// constant cache must fetch.
#ifndef VECINA_CUDA_KERNELS_SMALL_PARAMS_H_
#define VECINA_CUDA_KERNELS_SMALL_PARAMS_H_

namespace vecina::cuda {

// n / d for n < 2^31 as (n * multiplier) >> shift.
struct Divider {
  unsigned multiplier, shift;
};

// Rows of a tensor [batch, tokens..., heads, columns]; strides in bytes.
struct SmallRows {
  char* data;  // null: not given
  long long batch, head;
  long long token[3];
};

// Strides in bytes of the tensors that have tokens. Offset: int, or long long where that is too
// small.
template <class Offset>
struct SmallStrides {
  Offset query, key, value, output, lse;
};

template <class Offset>
struct SmallAxis {
  SmallStrides<Offset> token;
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int query_tiles;
};

struct SmallWindow {
  int kernel_size, stride, dilation, output_stride, is_causal;
};

// Lengths of samples, [samples, rank]; strides in bytes.
struct LengthRows {
  const char* data;
  long long sample, axis;
  long long bytes;  // of a length: 4 or 8
};

// Samples of different length (samples.cuh); not read where they are equal.
struct SampleLengths {
  LengthRows key, query;
  long long num_keys, num_queries, num_outputs;  // tokens of packed tensors
  int extent[3], query_extent[3];                // of the largest sample, outermost first
  int window_tokens[3];  // that a window spans; 0: every query sees all keys
  int output_stride[3];
};

// rank: the axes of the problem, for what follows them is then nearer.
template <class Offset, int rank = 3>
struct SmallParams {
  const char *query, *key, *value;
  char *output, *lse;  // lse null: not wanted
  SmallStrides<Offset> batch, head;
  float scale;  // scale * log2(e): softmax is computed in powers of two
  int num_head_blocks;
  // Blocks are numbered by batch, block of heads, tile of columns, tiles of axes 0, 1 and 2
  // (small_geometry.cuh says in which dimensions of the grid).
  Divider head_blocks;
  Divider blocks_per_group;      // blocks of heads that share a key head
  SmallAxis<Offset> axes[rank];  // innermost first

  const char *additional_key, *additional_value;
  Offset additional_key_batch, additional_key_token, additional_key_head;
  Offset additional_value_batch, additional_value_token, additional_value_head;

  const char* bias;
  Offset bias_head, bias_position[3];  // outermost first
  SmallWindow windows[3];              // outermost first
  Divider tiles[3];                    // query_tiles; innermost first
  int additional_tokens;
  Divider column_tiles;
  double scale_f64;
  SampleLengths lengths;
};
static_assert(sizeof(SampleLengths) == 2 * 32 + 3 * 8 + 4 * 12,
              "the host and the kernel must agree");
static_assert(sizeof(SmallParams<int, 1>) == 440 && sizeof(SmallParams<int, 2>) == 472 &&
                  sizeof(SmallParams<int, 3>) == 504,
              "the host and the kernel must agree");
static_assert(sizeof(SmallParams<long long, 1>) == 544 &&
                  sizeof(SmallParams<long long, 2>) == 600 &&
                  sizeof(SmallParams<long long, 3>) == 656,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_PARAMS_H_
