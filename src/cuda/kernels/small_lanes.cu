// SPDX-License-Identifier: MIT
// Forward for every problem, without tensor cores: a few threads ("lanes") share a query, each with
// its part of the columns. Keys and values come straight through L1; logits are summed over the
// lanes by butterflies. Exact products and sums in f32 (f64 for f64 problems).
//
// Short windows have all their keys in registers at once (is_unrolled); longer ones keep a running
// maximum and sum (Milakov and Gimelshein, arXiv:1805.02867).
#include "config.h"
#include "row_part.cuh"
#include "samples.cuh"
#include "small_geometry.cuh"
#include "small_params.h"
#include "types.h"

namespace vecina::cuda {
namespace {

using Element = Types<kConfig.dtype>::Element;
using Real = Types<kConfig.dtype>::Real;

template <bool is_wide>
struct OffsetType {
  using Type = int;
};
template <>
struct OffsetType<true> {
  using Type = long long;
};
using Offset = OffsetType<kConfig.has_wide_offsets>::Type;  // within a sample, in bytes
using Params = SmallParams<Offset, kConfig.rank>;

constexpr int kFirstAxis = 3 - kConfig.rank;
constexpr bool kHasLengths = kConfig.lengths != kEqualLengths;
constexpr bool kIsPacked = kConfig.lengths == kPackedLengths;
// A thread has a query of each of some heads, or neighbouring queries of one head.
constexpr int kHeads = kConfig.heads, kNeighbors = kConfig.neighbors;
constexpr int kRows = kHeads * kNeighbors;
static_assert(kHeads == 1 || (kNeighbors == 1 && kConfig.heads_beside == 1));
constexpr int kLanes = kConfig.lanes;
static_assert(kNeighbors <= 2 && kNeighbors <= kLanes && kConfig.tile[2] % kNeighbors == 0);
constexpr int kPlaces[3] = {kConfig.tile[0], kConfig.tile[1], kConfig.tile[2] / kNeighbors};
constexpr int kBeside = kConfig.heads_beside;
constexpr int kBlock = kPlaces[0] * kPlaces[1] * kPlaces[2] * kBeside * kLanes;
static_assert(kBlock % 32 == 0, "whole warps: every thread takes part in the butterflies");

constexpr int kKeyVectors = kConfig.head_dim / kConfig.key_vector;
constexpr int kKeyElements = kConfig.key_columns * kConfig.key_vector;
constexpr int kKeySteps =
    (kKeyVectors + kLanes * kConfig.key_columns - 1) / (kLanes * kConfig.key_columns);
constexpr int kValueVectors = kConfig.head_dim_value / kConfig.value_vector;
constexpr int kEarlyValues = kConfig.dtype == kF64 ? 32 : 64;
constexpr int kValueElements = kConfig.value_columns * kConfig.value_vector;
// How the loads of all keys and values at once are held above the products: by a barrier of the
// block, after which keys are waited for alone, or by a fence. Which is faster was measured.
constexpr bool kHasBarrier =
    kRows == 1 &&
    (sizeof(Element) == 2 || (kConfig.additional_tokens > 0 && kConfig.dtype == kF32));

template <int kVectors, int kVector, int kPiece, int kCount>
VECINA_DEVICE void load_part(const char* row, int first, bool is_visible, Real* part) {
  load_vectors<Element, kVectors, kVector, kPiece, kLanes, kCount>(row, first, is_visible, part);
}
VECINA_DEVICE void load_key_part(const char* row, int step, int lane, bool is_visible, Real* part) {
  if constexpr (kKeySteps == 1 && kKeyVectors == kLanes * kConfig.key_columns) {
    load_part<kKeyVectors + kLanes, kConfig.key_vector, kConfig.key_piece, kConfig.key_columns>(
        row, lane, is_visible, part);
  } else {
    load_part<kKeyVectors, kConfig.key_vector, kConfig.key_piece, kConfig.key_columns>(
        row, step * (kLanes * kConfig.key_columns) + lane, is_visible, part);
  }
}
VECINA_DEVICE void load_value_part(const char* row, int first, bool is_visible, Real* part) {
  if constexpr (kValueVectors == kLanes * kConfig.value_columns) {
    load_part<kValueVectors + kLanes, kConfig.value_vector, kConfig.value_piece,
              kConfig.value_columns>(row, first, is_visible, part);
  } else {
    load_part<kValueVectors, kConfig.value_vector, kConfig.value_piece, kConfig.value_columns>(
        row, first, is_visible, part);
  }
}

template <class Pointer>
VECINA_DEVICE Pointer sample_of(Pointer data, int batch, Offset stride) {
  return data + static_cast<long long>(batch) * stride;
}

// The first row of a sample.
template <class Pointer>
VECINA_DEVICE Pointer rows_of(Pointer data, const Tokens& tokens, Offset batch, Offset token) {
  return kIsPacked ? data + tokens.first * token : sample_of(data, tokens.sample, batch);
}

// The rule of an axis's windows, compiled in or not.
VECINA_DEVICE SmallWindow window_rule(const Params& params, const Sample& sample, int a) {
  if constexpr (kConfig.is_unrolled) {
    return {kConfig.kernel_size[a], kConfig.stride[a], kConfig.dilation[a],
            kConfig.output_stride[a], kConfig.is_causal[a]};
  } else {
    SmallWindow rule = params.windows[a];
    if constexpr (kHasLengths) {
      if (params.lengths.window_tokens[a] == 0) rule.kernel_size = sample.key.extent[a];
    }
    return rule;
  }
}

// *to = value() if is_stored. In f32 without a branch, behind which the outputs would wait; in f64
// a logarithm takes longer than that.
template <class Value>
VECINA_DEVICE void store_if(bool is_stored, Real* to, const Value& value) {
  if constexpr (kConfig.dtype == kF64) {
    if (is_stored) *to = value();
  } else {
    asm volatile(
        "{ .reg .pred is_stored;\n"
        "setp.ne.u32 is_stored, %0, 0;\n"
        "@is_stored st.global.f32 [%1], %2; }"
        :
        : "r"(static_cast<unsigned>(is_stored)), "l"(to), "f"(value())
        : "memory");
  }
}

// kKeys keys of one query.
template <int kKeys>
struct Keys {
  const char *key[kKeys], *value[kKeys];
  Offset bias[kKeys];
  bool is_visible[kKeys];
};

// Two neighbours see the same keys but for one of each, or the same. So along the last axis a
// thread holds one key more than a window has: the first query sees all but the last, the second
// all but the first.
constexpr int kLastAxisKeys = kConfig.kernel_size[2] + kNeighbors - 1;
constexpr int kWindowKeys = kConfig.kernel_size[0] * kConfig.kernel_size[1] * kLastAxisKeys;

// Whether a row of the thread's sees key j of those that it holds.
VECINA_DEVICE constexpr bool sees(int row, int j) {
  if constexpr (kNeighbors == 1) {
    return true;
  } else {
    return j >= kWindowKeys || j % kLastAxisKeys != (row == 0 ? kLastAxisKeys - 1 : 0);
  }
}

// What a thread knows of its queries, its rows of the output.
struct Query {
  const char* rows[kRows];
  Real columns[kRows][kKeySteps == 1 ? kKeyElements : 1];
  const char* bias[kRows];
  Real scale;
  int lane, first_value;  // its vectors of a row

  Real maximum[kRows], sum[kRows];  // of logits in powers of two; of their exponentials
  Real output[kRows][kValueElements];

  // Has seen nothing.
  VECINA_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      maximum[r] = Real(-infinity());
      sum[r] = Real(0);
#pragma unroll
      for (int i = 0; i < kValueElements; ++i) output[r][i] = Real(0);
    }
  }
};

// Adds keys to what the queries have attended to. is_first: these are their first.
template <int kKeys, bool is_first, bool has_bias>
VECINA_DEVICE void attend(const Keys<kKeys>& keys, Query& query) {
  // Few values travel while the logits are computed; many would need too many registers.
  constexpr bool is_early = kKeys * kValueElements <= kEarlyValues;
  Real early[is_early ? kKeys : 1][kValueElements];
  if constexpr (is_early) {
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      load_value_part(keys.value[j], query.first_value, keys.is_visible[j], early[j]);
    }
  }
  Real logits[kRows][kKeys];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kKeys; ++j) logits[r][j] = Real(0);
  }
#pragma unroll 1
  for (int step = 0; step < kKeySteps; ++step) {
    if constexpr (kKeySteps > 1) {
      Real columns[kRows][kKeyElements];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        load_key_part(query.rows[r], step, query.lane, true, columns[r]);
      }
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        Real key[kKeyElements];
        load_key_part(keys.key[j], step, query.lane, keys.is_visible[j], key);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (!sees(r, j)) continue;
#pragma unroll
          for (int i = 0; i < kKeyElements; ++i) {
            logits[r][j] = multiply_add(columns[r][i], key[i], logits[r][j]);
          }
        }
      }
    } else {
      Real all[kKeys][kKeyElements];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        load_key_part(keys.key[j], 0, query.lane, keys.is_visible[j], all[j]);
      }
      if constexpr (is_early && kConfig.is_unrolled) {
        if constexpr (kHasBarrier) {
          // What it returns is 0, which ptxas does not know: sums begin with it, below the loads.
          const auto zero = static_cast<unsigned>(__syncthreads_or(static_cast<int>(threadIdx.z)));
#pragma unroll
          for (int j = 0; j < kKeys; ++j) logits[0][j] = __uint_as_float(zero);
        } else {
          keep_loads_above();
        }
      }
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const Real(&key)[kKeyElements] = all[j];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (!sees(r, j)) continue;
#pragma unroll
          for (int i = 0; i < kKeyElements; ++i) {
            logits[r][j] = multiply_add(query.columns[r][i], key[i], logits[r][j]);
          }
        }
      }
    }
  }
  if constexpr (kConfig.is_unrolled) let_next_start();

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    Real maximum = is_first ? Real(-infinity()) : query.maximum[r];
    Real bias[has_bias ? kKeys : 1];
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      if (!sees(r, j)) continue;
      logits[r][j] = sum_over_lanes<kLanes>(logits[r][j]);
      Real logit = logits[r][j] * query.scale;
      if constexpr (has_bias) {
        bias[j] = Real(0);
        if (keys.is_visible[j]) {
          bias[j] = *reinterpret_cast<const Real*>(query.bias[r] + keys.bias[j]) * Real(1.0 / kLn2);
        }
        logit += bias[j];
      }
      maximum = larger(maximum, keys.is_visible[j] ? logit : Real(-infinity()));
    }
    // Where nothing but -infinity was seen, exponentials are 0 and not NaN.
    const Real shift = maximum == Real(-infinity()) ? Real(0) : maximum;
    const Real kept = is_first ? Real(0) : power_of_two(query.maximum[r] - shift);
    Real sum = is_first ? Real(0) : query.sum[r] * kept;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      if (!sees(r, j)) continue;
      // One rounding: large logits would lose in two what they differ by.
      Real base = -shift;
      if constexpr (has_bias) base += bias[j];
      const Real logit = multiply_add(logits[r][j], query.scale, base);
      logits[r][j] = keys.is_visible[j] ? power_of_two(logit) : Real(0);
      sum += logits[r][j];
    }
    query.maximum[r] = maximum;
    query.sum[r] = sum;
#pragma unroll
    for (int i = 0; i < kValueElements; ++i) {
      query.output[r][i] = is_first ? Real(0) : query.output[r][i] * kept;
    }
  }

#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    Real value[kValueElements];
    if constexpr (is_early) {
#pragma unroll
      for (int i = 0; i < kValueElements; ++i) value[i] = early[j][i];
    } else {
      load_value_part(keys.value[j], query.first_value, keys.is_visible[j], value);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!sees(r, j)) continue;
#pragma unroll
      for (int i = 0; i < kValueElements; ++i) {
        query.output[r][i] = multiply_add(logits[r][j], value[i], query.output[r][i]);
      }
    }
  }
}

// Steps through the keys of a window, the innermost axis fastest.
struct Cursor {
  int at[3] = {0, 0, 0};

  VECINA_DEVICE void advance(const int (&count)[3]) {
    if (++at[2] < count[2] || kFirstAxis == 2) return;
    at[2] = 0;
    if (++at[1] < count[1] || kFirstAxis == 1) return;
    at[1] = 0;
    ++at[0];
  }
};

// A query's window in memory: addresses of its first key, and steps from key to key.
struct Window {
  const char *key, *value;
  Offset key_step[3], value_step[3], bias_step[3];
  int count[3];  // visible keys along each axis
  int next;      // of two neighbours: the last key along the last axis, or the first again

  template <int kKeys>
  VECINA_DEVICE void put(const Cursor& cursor, bool is_visible, int j, Keys<kKeys>& keys) const {
    Offset key_offset = 0, value_offset = 0, bias_offset = 0;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      const bool is_next = kNeighbors > 1 && a == 2 && cursor.at[a] == kConfig.kernel_size[a];
      const int at = is_next ? next : cursor.at[a];
      key_offset += at * key_step[a];
      value_offset += at * value_step[a];
      if constexpr (kConfig.has_bias) bias_offset += cursor.at[a] * bias_step[a];
    }
    keys.key[j] = key + key_offset;
    keys.value[j] = value + value_offset;
    keys.bias[j] = bias_offset;
    keys.is_visible[j] = is_visible;
  }
};

struct AdditionalTokens {
  const char *key, *value;
  Offset key_step, value_step;

  template <int kKeys>
  VECINA_DEVICE void put(int token, bool is_visible, int j, Keys<kKeys>& keys) const {
    keys.key[j] = key + token * key_step;
    keys.value[j] = value + token * value_step;
    keys.bias[j] = 0;
    keys.is_visible[j] = is_visible;
  }
};

// All keys at once. The bias, if any, is of window keys alone, so additional tokens follow apart.
template <int kWindow, int kAdditional>
VECINA_DEVICE void attend_unrolled(const Window& window, const AdditionalTokens& additional,
                                   Query& query) {
  constexpr bool is_split = kConfig.has_bias && kAdditional > 0;
  Keys<is_split ? kWindow : kWindow + kAdditional> keys;
  Cursor cursor;
#pragma unroll
  for (int j = 0; j < kWindow; ++j) {
    bool is_visible = true;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      if (kConfig.is_causal[a] && cursor.at[a] >= window.count[a]) is_visible = false;
    }
    window.put(cursor, is_visible, j, keys);
    cursor.advance({kConfig.kernel_size[0], kConfig.kernel_size[1], kLastAxisKeys});
  }
  if constexpr (is_split) {
    attend<kWindow, true, true>(keys, query);
    Keys<kAdditional> more;
#pragma unroll
    for (int j = 0; j < kAdditional; ++j) additional.put(j, true, j, more);
    attend<kAdditional, false, false>(more, query);
  } else {
#pragma unroll
    for (int j = 0; j < kAdditional; ++j) additional.put(j, true, kWindow + j, keys);
    attend<kWindow + kAdditional, true, kConfig.has_bias>(keys, query);
  }
}

// A few keys at a time. Queries of a warp may see different numbers of keys; they step together.
VECINA_DEVICE void attend_streamed(const Window& window, const AdditionalTokens& additional,
                                   int num_additional, Query& query) {
  constexpr int kKeys = kConfig.keys_at_once;
  query.clear();
  int visible = 1;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) visible *= window.count[a];
  const int most = __reduce_max_sync(0xffffffffu, visible);
  Cursor cursor;
#pragma unroll 1
  for (int first = 0; first < most; first += kKeys) {
    Keys<kKeys> keys;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      window.put(cursor, first + j < visible, j, keys);
      cursor.advance(window.count);
    }
    attend<kKeys, false, kConfig.has_bias>(keys, query);
  }
#pragma unroll 1
  for (int first = 0; first < num_additional; first += kKeys) {
    Keys<kKeys> keys;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      additional.put(first + j, first + j < num_additional, j, keys);
    }
    attend<kKeys, false, false>(keys, query);
  }
  let_next_start();
}

// What a block knows of its sample. Of equal lengths the kernel reads only the axes.
VECINA_DEVICE Sample sample_of_block(const Params& params, int batch) {
  if constexpr (kHasLengths) {
    wait_for_previous();
    return sample_at<kConfig.lengths, kFirstAxis>(params.lengths, batch);
  } else {
    Sample sample = {};
    sample.has_windows = true;
    sample.key.sample = sample.query.sample = sample.output.sample = batch;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      sample.key.extent[a] = params.axes[2 - a].extent;
      sample.output.extent[a] = params.axes[2 - a].num_queries;
    }
    return sample;
  }
}

// Strides of the tokens along an axis; in a packed tensor they depend on the sample.
VECINA_DEVICE SmallStrides<Offset> token_strides(const Params& params, const Sample& sample,
                                                 int axis) {
  if constexpr (!kIsPacked) return params.axes[2 - axis].token;
  SmallStrides<Offset> strides = params.axes[0].token;
  for (int a = 2; a > axis; --a) {
    strides.query *= sample.query.extent[a];
    strides.key *= sample.key.extent[a];
    strides.value *= sample.key.extent[a];
    strides.output *= sample.output.extent[a];
    strides.lse *= sample.output.extent[a];
  }
  return strides;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kBlock)
    small_lanes_forward(const __grid_constant__ Params params) {
  // Which queries: block number, then place in the block's tile.
  constexpr int kColumnTiles =
      (kValueVectors + kLanes * kConfig.value_columns - 1) / (kLanes * kConfig.value_columns);
  const BlockPlace block = block_place<kConfig.rank, kColumnTiles, kConfig.has_flat_grid>(params);
  const int batch = block.batch, column_tile = block.column_tile;
  int place = static_cast<int>(threadIdx.x) / kLanes;
  const int head = (block.head_block * kBeside + place % kBeside) * kHeads;
  const int head_kv = kBeside > 1 ? head : divide(block.head_block, params.blocks_per_group);
  place /= kBeside;

  // Where things lie.
  const Sample sample = sample_of_block(params, batch);
  Query query;
  query.lane = static_cast<int>(threadIdx.x) % kLanes;
  query.first_value = column_tile * (kLanes * kConfig.value_columns) + query.lane;
  bool is_row = true;                  // not beyond the last row of the output
  bool is_query = sample.has_windows;  // not beyond the sample's last token
  Window window;
  Offset query_offset = head * params.head.query, output_offset = head * params.head.output;
  Offset key_offset = head_kv * params.head.key, value_offset = head_kv * params.head.value;
  Offset lse_offset = head * params.head.lse, bias_offset = 0;
  SmallStrides<Offset> to_neighbor = {};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    const SmallWindow rule = window_rule(params, sample, a);
    const SmallStrides<Offset> strides = token_strides(params, sample, a);
    const int num_queries = sample.output.extent[a];
    const int num_rows = kIsPacked ? num_queries : params.axes[2 - a].num_queries;
    const int unclamped =
        block.tile[a] * kConfig.tile[a] + place % kPlaces[a] * (kConfig.tile[a] / kPlaces[a]);
    place /= kPlaces[a];
    is_row = is_row && unclamped < num_rows;
    is_query = is_query && unclamped < num_queries;
    const int row = na_min(unclamped, num_rows - 1), token = na_min(unclamped, num_queries - 1);
    const AxisWindow along = window_along(sample.key.extent[a], rule, token);
    query_offset += along.position * strides.query;
    key_offset += along.first * strides.key;
    value_offset += along.first * strides.value;
    output_offset += row * strides.output;
    lse_offset += row * strides.lse;
    window.key_step[a] = rule.dilation * strides.key;
    window.value_step[a] = rule.dilation * strides.value;
    window.count[a] = along.count;
    if (kNeighbors > 1 && a == 2) {
      // Beyond the last query it is that one again.
      const int second = na_min(unclamped + 1, num_queries - 1);
      const bool moves = window_along(sample.key.extent[a], rule, second).first != along.first;
      window.next = moves ? kConfig.kernel_size[a] : 0;
      to_neighbor.query = (second - token) * strides.query;
      to_neighbor.output = (second - token) * strides.output;
      to_neighbor.lse = (second - token) * strides.lse;
    }
    if constexpr (kConfig.has_bias) {
      bias_offset += along.bias_first * params.bias_position[a];
      window.bias_step[a] = params.bias_position[a];
    }
  }
  const SmallStrides<Offset>& inner = params.axes[0].token;
  const char* query_row =
      rows_of(params.query, sample.query, params.batch.query, inner.query) + query_offset;
  window.key = rows_of(params.key, sample.key, params.batch.key, inner.key) + key_offset;
  window.value = rows_of(params.value, sample.key, params.batch.value, inner.value) + value_offset;
  AdditionalTokens additional = {};
  if (!kConfig.is_unrolled || kConfig.additional_tokens > 0) {
    additional = {sample_of(params.additional_key, batch, params.additional_key_batch) +
                      head_kv * params.additional_key_head,
                  sample_of(params.additional_value, batch, params.additional_value_batch) +
                      head_kv * params.additional_value_head,
                  params.additional_key_token, params.additional_value_token};
  }
  if constexpr (kConfig.dtype == kF64) {
    query.scale = params.scale_f64;
  } else {
    query.scale = params.scale;
  }

  const SmallStrides<Offset>& to_next = kNeighbors > 1 ? to_neighbor : params.head;  // row

  wait_for_previous();
  // A thread without a query goes along with the sample's last; its loads are of real tokens.
  if (!kHasLengths || __syncthreads_or(is_query) != 0) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      query.rows[r] = query_row + r * to_next.query;
      if constexpr (kKeySteps == 1) {
        load_key_part(query.rows[r], 0, query.lane, true, query.columns[r]);
      }
      if constexpr (kConfig.has_bias) {
        query.bias[r] = params.bias + bias_offset + (head + r) * params.bias_head;
      }
    }
    if constexpr (kConfig.is_unrolled) {
      attend_unrolled<kWindowKeys, kConfig.additional_tokens>(window, additional, query);
    } else {
      attend_streamed(window, additional, params.additional_tokens, query);
    }
  }

  if (!is_row) return;
  if (kHasLengths && !is_query) query.clear();
  // Each of the first lanes stores the lse of a row.
  const auto store_lses = [&] {
    char* lse = rows_of(params.lse, sample.output, params.batch.lse, inner.lse) + lse_offset;
#pragma unroll
    for (int first = 0; first < kRows; first += kLanes) {
      const int r = first + query.lane;
      Real maximum = query.maximum[first], sum = query.sum[first];
      if (kRows > first + 1 && query.lane > 0) {
        maximum = query.maximum[kRows - 1];
        sum = query.sum[kRows - 1];
      }
      const Real shift = maximum == Real(-infinity()) ? Real(0) : maximum;
      // Of two neighbours that are one query the second's, whose output remains.
      const bool is_last = kNeighbors == 1 || r > 0 || to_neighbor.lse != 0;
      store_if(params.lse != nullptr && column_tile == 0 && r < kRows && is_last,
               reinterpret_cast<Real*>(lse + r * to_next.lse),
               [&] { return (shift + logarithm_of_two(sum)) * Real(kLn2); });
    }
  };
  if constexpr (!kHasBarrier) store_lses();
  char* output =
      rows_of(params.output, sample.output, params.batch.output, inner.output) + output_offset;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Real inverse = query.sum[r] == Real(0) ? Real(0) : reciprocal(query.sum[r]);
    char* row = output + r * to_next.output;
#pragma unroll
    for (int m = 0; m < kConfig.value_columns; ++m) {
      const int vector = query.first_value + m * kLanes;
      if (vector >= kValueVectors) continue;
      Real columns[kConfig.value_vector];
#pragma unroll
      for (int i = 0; i < kConfig.value_vector; ++i) {
        columns[i] = query.output[r][m * kConfig.value_vector + i] * inverse;
      }
      store_pieces<Element, kConfig.value_vector, kConfig.value_piece>(
          columns, row + vector * (kConfig.value_vector * static_cast<int>(sizeof(Element))));
    }
  }
  if constexpr (kHasBarrier) store_lses();  // before, these kernels were slower
}

}  // namespace vecina::cuda
