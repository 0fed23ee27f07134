// SPDX-License-Identifier: MIT
// Forward with tensor cores for small windows in a single wave of blocks: every warp loads the
// fragments of its products straight from global memory, 16 bytes a load, with no shared memory in
// between. A warp's 16 rows (queries of a box of positions, and heads of one key head) meet the
// keys of their union of windows, those outside of a row's own window masked.
//
// Any order of the summed index is right if both factors have it: query and key give a thread 8
// columns of each 32 (kHasRunsApart says which), so the sums of logits are the first factor of the
// second product as they lie; value gives it columns 4g to 4g + 3 (g = lane / 4) of two keys, so it
// ends with 8 neighbouring columns of the output.
//
// A tile of 8 keys is a piece of a row of the union where rows are whole tiles: its place is known
// when the kernel is compiled. Other unions are one list of keys, cut into tiles every 8 keys.
//
// f32 is computed in three TF32 products whose two small terms have sums of their own.
//
// Masked keys count 0 times their value, which is not 0 for a NaN or infinity. Where a result is
// not finite, the block computes again without such elements, and then each of its rows alone: the
// row keeps the first of the two unless it sees such an element.
#include "matrix.cuh"
#include "small_fragments_box.cuh"
#include "small_fragments_rows.cuh"

namespace vecina::cuda {
namespace {

constexpr int kPitch = kColumns + 4;  // of partial sums in shared memory

// A thread's columns of a query or key row, from its first on.
VECINA_DEVICE void load_key_row(const char* row, unsigned (&words)[kWords]) {
#pragma unroll
  for (int w = 0; w < kWords; w += 4) {
    const int column = kIsF32 ? w / 8 * 32 + w % 8 / 4 * kSecondRun : w / 4 * 32;
    load_words<16>(row + column * kBytes, words + w);
  }
}
// Of a value row: 4 of each 32.
VECINA_DEVICE void load_value_row(const char* row, unsigned (&words)[kValueWords]) {
#pragma unroll
  for (int m = 0; m < kColumns / 32; ++m) {
    load_words<4 * kBytes>(row + 32 * m * kBytes, words + m * (kValueWords * 32 / kColumns));
  }
}

// Of all the warp's keys, or of its values.
VECINA_DEVICE void load_keys(const Rows& keys, const Box& box, unsigned (&key)[kTiles][kWords]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) load_key_row(keys.at(box, j), key[j]);
}
VECINA_DEVICE void load_values(const Rows (&values)[2], const Box& box,
                               unsigned (&value)[kTiles][2][kValueWords]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) load_value_row(values[e].at(box, j), value[j][e]);
  }
}

// logits += query . key for all the warp's keys.
template <class E>
VECINA_DEVICE void multiply_keys(const unsigned (&query)[2][kWords],
                                 const unsigned (&key)[kTiles][kWords], float scale,
                                 float (&logits)[kTiles][4]) {
  if constexpr (kIsF32) {
    Split rows[2][kWords];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        rows[i][w] = split_rounded(__uint_as_float(query[i][w]) * scale);
      }
    }
    float small[kTiles][4];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) small[j][0] = small[j][1] = small[j][2] = small[j][3] = 0.0f;
    constexpr int kAtOnce = kTiles < 4 ? kTiles : 4;  // dependent products stay apart
#pragma unroll
    for (int first = 0; first < kTiles; first += kAtOnce) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        Split columns[kAtOnce][2];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          columns[j][0] = split_cut(__uint_as_float(key[first + j][w]));
          columns[j][1] = split_cut(__uint_as_float(key[first + j][w + 1]));
          multiply_tf32(small[first + j], rows[0][w].low, rows[1][w].low, rows[0][w + 1].low,
                        rows[1][w + 1].low, columns[j][0].high, columns[j][1].high);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          multiply_tf32(logits[first + j], rows[0][w].high, rows[1][w].high, rows[0][w + 1].high,
                        rows[1][w + 1].high, columns[j][0].high, columns[j][1].high);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          multiply_tf32(small[first + j], rows[0][w].high, rows[1][w].high, rows[0][w + 1].high,
                        rows[1][w + 1].high, columns[j][0].low, columns[j][1].low);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logits[j][e] += small[j][e];
    }
  } else {
    unsigned factors[kWords / 2][4];
    make_factors(query, factors);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        const unsigned(&a)[4] = factors[w / 2];
        multiply(E{}, logits[j], a[0], a[1], a[2], a[3], key[j][w], key[j][w + 1]);
      }
    }
  }
}

// output = weights * value.
template <class E>
VECINA_DEVICE void multiply_values(const float (&weights)[kTiles][4],
                                   const unsigned (&value)[kTiles][2][kValueWords],
                                   float (&output)[kColumns / 8][4]) {
#pragma unroll
  for (int t = 0; t < kColumns / 8; ++t) {
    output[t][0] = output[t][1] = output[t][2] = output[t][3] = 0.0f;
  }
  if constexpr (kIsF32) {
    // See make_factors; with masks ptxas then chose an order that made 2-D 3% slower.
    const unsigned zero = kHasMasks ? 0 : opaque_zero();
    float small[kColumns / 8][4];
#pragma unroll
    for (int t = 0; t < kColumns / 8; ++t) {
      small[t][0] = small[t][1] = small[t][2] = small[t][3] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Split a0 = split_rounded(weights[j][0]), a1 = split_rounded(weights[j][2]);
      const Split a2 = split_rounded(weights[j][1]), a3 = split_rounded(weights[j][3]);
      Split columns[kColumns / 8][2];
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        columns[t][0] = split_cut(__uint_as_float(value[j][0][t] ^ zero));
        columns[t][1] = split_cut(__uint_as_float(value[j][1][t] ^ zero));
        multiply_tf32(small[t], a0.low, a1.low, a2.low, a3.low, columns[t][0].high,
                      columns[t][1].high);
      }
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        multiply_tf32(output[t], a0.high, a1.high, a2.high, a3.high, columns[t][0].high,
                      columns[t][1].high);
      }
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        multiply_tf32(small[t], a0.high, a1.high, a2.high, a3.high, columns[t][0].low,
                      columns[t][1].low);
      }
    }
#pragma unroll
    for (int t = 0; t < kColumns / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[t][e] += small[t][e];
    }
  } else {
    // ptxas would move the first use of values, and the wait for them, above the softmax.
    const unsigned zero = opaque_zero() & __float_as_uint(weights[0][0]);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      const unsigned a0 = pack(E{}, weights[j][0], weights[j][1]);
      const unsigned a1 = pack(E{}, weights[j][2], weights[j][3]);
      const unsigned a2 = pack(E{}, weights[j + 1][0], weights[j + 1][1]);
      const unsigned a3 = pack(E{}, weights[j + 1][2], weights[j + 1][3]);
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        const unsigned halves = (t % 2 == 0 ? 0x5410 : 0x7632) ^ zero;  // a column of two keys
        multiply(E{}, output[t], a0, a1, a2, a3,
                 __byte_perm(value[j][0][t / 2], value[j][1][t / 2], halves),
                 __byte_perm(value[j + 1][0][t / 2], value[j + 1][1][t / 2], halves));
      }
    }
  }
}

// The whole of a warp's work. is_cleaned: elements that are not finite count as 0.
template <bool is_cleaned>
VECINA_DEVICE Sums attend(const Params& params, const Box& box, const Row (&rows)[2]) {
  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32), g = lane / 4, q = lane % 4;

  unsigned query[2][kWords], key[kTiles][kWords], value[kTiles][2][kValueWords];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int offset = rows[i].head * params.head.query + q * kRunOfThread;
#pragma unroll
    for (int a = 3 - kConfig.rank; a < 3; ++a) {
      offset += rows[i].token[a] * params.axes[2 - a].token.query;
    }
    load_key_row(params.query + static_cast<long long>(box.batch) * params.batch.query +
                     static_cast<unsigned>(offset),
                 query[i]);
  }
  const Rows keys(box.key, box, g, q * kRunOfThread);
  if constexpr (kIsF32) {
    const Rows values[2] = {Rows(box.value, box, 2 * q, 4 * g * kBytes),
                            Rows(box.value, box, 2 * q + 1, 4 * g * kBytes)};
    load_keys(keys, box, key);
    load_values(values, box, value);
  } else {
    load_keys(keys, box, key);
    // Values are asked for when the query is there: of a warp's six counters of loads in flight
    // some are free again, so that waiting for a key does not mean waiting for values.
    const unsigned zero = opaque_zero() & (query[0][0] ^ query[1][0]);
    const int column = 4 * g * kBytes + static_cast<int>(zero);
    const Rows values[2] = {Rows(box.value, box, 2 * q, column),
                            Rows(box.value, box, 2 * q + 1, column)};
    load_values(values, box, value);
  }
  // Products of f32 last long enough for the values to arrive meanwhile, unless they are few.
  if constexpr (!kIsF32 || kTiles <= 2) keep_loads_above();

  // Masks, while the loads travel: the sums of masked logits begin at -infinity.
  float logits[kTiles][4];
  const RowMask masks[2] = {RowMask(box, rows[0], 2 * q), RowMask(box, rows[1], 2 * q)};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if constexpr (kHasMasks && kHasRowMasks) {
        logits[j][e] = masks[0].of(j, e);
        logits[j][2 + e] = masks[1].of(j, e);
        continue;
      }
      const Key place = list_key(box.split, j, 2 * q + e);
      logits[j][e] = !kHasMasks || is_visible(rows[0], place, j) ? 0.0f : -infinity();
      logits[j][2 + e] = !kHasMasks || is_visible(rows[1], place, j) ? 0.0f : -infinity();
    }
  }
  if constexpr (is_cleaned) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) key[j][w] = without_infinities(Element{}, key[j][w]);
#pragma unroll
      for (int w = 0; w < kValueWords; ++w) {
        value[j][0][w] = without_infinities(Element{}, value[j][0][w]);
        value[j][1][w] = without_infinities(Element{}, value[j][1][w]);
      }
    }
  }
  multiply_keys<Element>(query, key, params.scale, logits);

  Sums sums;
  const float scale = kIsF32 ? 1.0f : params.scale;  // f32: in the query already
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = kLowest;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      maximum = larger(maximum, larger(logits[j][2 * i], logits[j][2 * i + 1]));
    }
    sums.maximum[i] = larger(over_quad(maximum, false) * scale, kLowest);
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        logits[j][e] = power_of_two(kIsF32 ? logits[j][e] - sums.maximum[i]
                                           : fmaf(logits[j][e], scale, -sums.maximum[i]));
        total += logits[j][e];
      }
    }
    sums.total[i] = total;
  }
  multiply_values<Element>(logits, value, sums.output);
  let_next_start();
#pragma unroll
  for (int i = 0; i < 2; ++i) sums.total[i] = over_quad(sums.total[i], true);
  return sums;
}

VECINA_DEVICE bool are_finite(const Sums& sums) {
  float all[4] = {sums.total[0], sums.total[1], 0.0f, 0.0f};  // four chains of additions
#pragma unroll
  for (int t = 0; t < kColumns / 8; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) all[e] += sums.output[t][e];
  }
  return is_finite((all[0] + all[1]) + (all[2] + all[3]));
}

VECINA_DEVICE SmallWindow window_rule(int a) {
  return {kConfig.kernel_size[a], kConfig.stride[a], kConfig.dilation[a], 1, kConfig.is_causal[a]};
}

// A warp computes one row anew, key by key, and stores it if anything that it sees, or what was
// stored, is not finite.
VECINA_DEVICE void attend_alone(const Params& params, const Box& box, const Row& row) {
  constexpr int kMine = kColumns / 32;
  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32);
  int query_offset = row.head * params.head.query;
  int key_offset = box.head_kv * params.head.key, value_offset = box.head_kv * params.head.value;
  AxisWindow windows[3] = {{0, 0, 1, 0}, {0, 0, 1, 0}, {0, 0, 1, 0}};
#pragma unroll
  for (int a = 3 - kConfig.rank; a < 3; ++a) {
    const SmallAxis<int>& axis = params.axes[2 - a];
    windows[a] = window_along(axis.extent, window_rule(a), row.token[a]);
    query_offset += windows[a].position * axis.token.query;
    key_offset += windows[a].first * axis.token.key;
    value_offset += windows[a].first * axis.token.value;
  }
  const char* query_row =
      params.query + static_cast<long long>(box.batch) * params.batch.query + query_offset;
  const char* key = params.key + static_cast<long long>(box.batch) * params.batch.key + key_offset;
  const char* value =
      params.value + static_cast<long long>(box.batch) * params.batch.value + value_offset;
  float query[kMine], output[kMine], maximum = -infinity(), total = 0.0f;
  bool is_good = true;
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    load<Element, 1>(query_row + (32 * m + lane) * kBytes, query + m);
    is_good = is_good && is_finite(query[m]);
    output[m] = 0.0f;
  }
  const auto add = [&](const char* key_row, const char* value_row) {
    float logit = 0.0f;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      float column;
      load<Element, 1>(key_row + (32 * m + lane) * kBytes, &column);
      logit = fmaf(query[m], column, logit);
      is_good = is_good && is_finite(column);
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      logit += __shfl_xor_sync(0xffffffffu, logit, distance);
    }
    logit *= params.scale;
    const float next = larger(maximum, logit);
    const float shift = next == -infinity() ? 0.0f : next;
    const float kept = power_of_two(maximum - shift), weight = power_of_two(logit - shift);
    maximum = next;
    total = total * kept + weight;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      float column;
      load<Element, 1>(value_row + (32 * m + lane) * kBytes, &column);
      output[m] = fmaf(weight, column, output[m] * kept);
      is_good = is_good && is_finite(column);
    }
  };
#pragma unroll 1
  for (int x = 0; x < windows[0].count; ++x) {
#pragma unroll 1
    for (int y = 0; y < windows[1].count; ++y) {
#pragma unroll 1
      for (int z = 0; z < windows[2].count; ++z) {
        add(key + (x * box.key.step[0] + y * box.key.step[1] + z * box.key.step[2]),
            value + (x * box.value.step[0] + y * box.value.step[1] + z * box.value.step[2]));
      }
    }
  }
#pragma unroll 1
  for (int token = 0; token < kAdditional; ++token) {
    add(box.key.additional + token * box.key.additional_step,
        box.value.additional + token * box.value.additional_step);
  }

  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  const float lse = ((maximum == -infinity() ? 0.0f : maximum) + logarithm_of_two(total)) *
                    static_cast<float>(kLn2);
  char* stored = output_row(params, box, row);
  is_good = is_good && is_finite(lse);
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    output[m] *= inverse;
    float before;
    load<Element, 1>(stored + (32 * m + lane) * kBytes, &before);
    is_good = is_good && is_finite(output[m]) && is_finite(before);
  }
  if (__all_sync(0xffffffffu, is_good)) return;
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    store<Element, 1>(output + m, stored + (32 * m + lane) * kBytes);
  }
  if (params.lse != nullptr && lane == 0) store_lse(params, box, row, lse);
}

// The block's work; false if a result is not finite, and some may not be written then.
template <bool is_cleaned>
VECINA_DEVICE bool attend_and_store(const Params& params) {
  extern __shared__ float4 shared[];  // kSplit > 1: partial outputs, then maxima and totals

  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32), g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(ThreadNumber(threadIdx.x) / 32);
  const int number = warp / kSplit;  // of the box in its block
  const Box box = make_box(params);
  Row rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // The first of the two is the one that this warp of a pair finishes.
    rows[i] = make_row(params, box, g + 8 * (kIsPair ? i ^ box.split : i));
  }
  if constexpr (!is_cleaned) wait_for_previous();
  const Sums sums = attend<is_cleaned>(params, box, rows);
  const bool is_good = is_cleaned || are_finite(sums);

  if constexpr (kSplit == 1) {
    if (!__all_sync(0xffffffffu, is_good)) return false;
#pragma unroll
    for (int i = 0; i < 2; ++i) RowSums(sums, i).store(params, box, rows[i], q);
  } else if constexpr (kIsPair) {
    const PairSlots slots(shared);
    slots.put(warp, RowSums(sums, 1));
    if (__syncthreads_and(is_good) == 0) return false;
    RowSums mine(sums, 0), other = mine;
    slots.get(warp ^ 1, &other);
    mine.add(other);
    mine.store(params, box, rows[0], q);
  } else {
    // Not in small_fragments_rows.cuh: as a function it compiles to other code.
    float* partial = reinterpret_cast<float*>(shared);
    float2* totals = reinterpret_cast<float2*>(partial + kSplit * kBoxes * 16 * kPitch);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = (box.split * kBoxes + number) * 16 + g + 8 * i;
      const RowSums sum(sums, i);
      if (q == 0) totals[row] = make_float2(sum.maximum, sum.total);
#pragma unroll
      for (int m = 0; m < kColumns / 32; ++m) {
        float4* to = reinterpret_cast<float4*>(partial + row * kPitch + 32 * m + 8 * q);
        const float* from = sum.output[m];
        to[0] = make_float4(from[0], from[1], from[2], from[3]);
        to[1] = make_float4(from[4], from[5], from[6], from[7]);
      }
    }
    if (__syncthreads_and(is_good) == 0) return false;
    // Each warp merges rows of its own box: 4 columns a thread.
    constexpr int kThreadsOfRow = kColumns / 4;
    constexpr int kParts = 16 * kThreadsOfRow;  // of a box
#pragma unroll 1
    for (int part = box.split * 32 + lane; part < kParts; part += kSplit * 32) {
      const int in_box = part / kThreadsOfRow, column = part % kThreadsOfRow * 4;
      float maximum = kLowest;
      float2 each[kSplit];
      float4 columns[kSplit];
#pragma unroll
      for (int s = 0; s < kSplit; ++s) {
        const int row = (s * kBoxes + number) * 16 + in_box;
        each[s] = totals[row];
        columns[s] = *reinterpret_cast<const float4*>(partial + row * kPitch + column);
        maximum = larger(maximum, each[s].x);
      }
      float total = 0.0f, output[4] = {};
#pragma unroll
      for (int s = 0; s < kSplit; ++s) {
        const float weight = power_of_two(each[s].x - maximum);
        total += weight * each[s].y;
        output[0] += weight * columns[s].x;
        output[1] += weight * columns[s].y;
        output[2] += weight * columns[s].z;
        output[3] += weight * columns[s].w;
      }
      const Row row = make_row(params, box, in_box);
      if (!row.is_query) continue;
      const float inverse = inverse_of(total);
#pragma unroll
      for (int c = 0; c < 4; ++c) output[c] *= inverse;
      store<Element, 4>(output, output_row(params, box, row) + column * kBytes);
      if (params.lse != nullptr && column == 0) {
        store_lse(params, box, row, (maximum + logarithm_of_two(total)) * static_cast<float>(kLn2));
      }
    }
  }
  return true;
}

// For a block (with kSplit 1: a warp) whose results are not all finite.
__device__ __noinline__ void repair(const Params& params) {
  if constexpr (kSplit > 1) __syncthreads();  // what the first attempt left in shared memory
  attend_and_store<true>(params);
  if constexpr (kSplit > 1) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  const Box box = make_box(params);
#pragma unroll 1
  for (int r = box.split; r < 16; r += kSplit) {
    const Row row = make_row(params, box, r);
    if (row.is_query) attend_alone(params, box, row);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    small_fragments_forward(const __grid_constant__ Params params) {
  if (!attend_and_store<false>(params)) repair(params);
}

}  // namespace vecina::cuda
