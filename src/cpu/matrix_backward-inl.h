// SPDX-License-Identifier: MIT
// One unit of the backward pass in the matrix form: items of up to eight tiles of 16 queries, two
// of which are multiplied at a time, by steps of 32 keys. With P the probabilities, and
// delta = output . grad_output, or sum P * dP where the rounding of output shows:
//   P = exp(scale * query . key - lse),   dP = grad_output . value      16 queries are a vector
//   dS = P * (dP - delta + grad_lse), rounded as P is to what the products below read
//   grad_query = scale * sum dS * key,   transposed until it is written
//   grad_key = scale * sum dS * query,   grad_value = sum P * grad_output
// P and dP have a row for each key and a column for each query: as they are, they are first
// operands of the gradients of keys. Only dS is stored once more, two keys side by side, for
// grad_query.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_BACKWARD_INL_H_
#undef VECINA_CPU_MATRIX_BACKWARD_INL_H_
#else
#define VECINA_CPU_MATRIX_BACKWARD_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/backward.h"
#include "cpu/key_gradients-inl.h"
#include "cpu/matrix_backward_queries-inl.h"
#include "cpu/matrix_rows-inl.h"
#include "cpu/matrix_tiles-inl.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Tiles>
class MatrixBackwardUnit : MatrixBackwardQueries {
 public:
  MatrixBackwardUnit(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                     void* scratch)
      : MatrixBackwardQueries(plan, pointers, unit, scratch),
        pointers_(pointers),
        scale_(static_cast<float>(plan.scale * kLog2E)) {}

  void run() {
    std::fill_n(sums_.additional, plan_.additional_sums_size, 0.0f);
    pack_additional();
    Tiles::configure();
    const KeyGradients<bfloat16> gradients(plan_, pointers_, head_index_);
    const auto axis = static_cast<size_t>(keys_.ring().axis);
    const AxisGroup& group = keys_.axis(axis);
    int packed = keys_.range(axis).begin, written = 0;
    // Not walk_bands(): rows between windows are packed too, for their gradients are written.
    for (int first = box_.begin[axis], next; first < box_.end[axis]; first = next) {
      next = std::min(first + keys_.ring().band, box_.end[axis]);
      Box band = box_;
      band.begin[axis] = first;
      band.end[axis] = next;
      const int end = key_range(group, first, next).end;
      for (; packed < end; ++packed) pack_rows(packed);
      run_band(band);
      if (plan_.keeps_sums_apart) continue;
      const int done = next < box_.end[axis] ? std::min(packed, group.begin(group.position(next)))
                                             : group.window.extent;
      for (; written < done; ++written) write_rows(gradients, written);
    }
    Tiles::release();
    if (plan_.additional_tokens > 0 && !plan_.keeps_additional_apart) {
      gradients.write_additional(sums_.additional, 1);
    }
    gradients.finish();
  }

 private:
  static constexpr int kMostSteps = kMatrixColumns / kStep;
  static constexpr ptrdiff_t kOfStep = kMatrixPairStep;
  static constexpr ptrdiff_t kStepBytes = kStep * sizeof(bfloat16);

  // Columns of a KeyRow, from `column` on, whose dS wait for the sums of queries.
  struct Step {
    KeyRow row;
    int column;
    bool is_seen[2 * kMostTilePairs];

    bool is_seen_by(int pair) const { return is_seen[2 * pair] || is_seen[2 * pair + 1]; }
  };

  // Gradients of all rows of keys at one place of the ring's axis.
  void write_rows(const KeyGradients<bfloat16>& gradients, int at) const {
    const auto box = static_cast<int>(&box_ - plan_.boxes.data());  // one a combination
    for_rows(at, {0, keys_.axis(other_axis()).window.extent}, [&](int z, int y) {
      gradients.write_slice({box, z, y, 0, lane_axis().window.extent}, sums_.keys);
    });
  }

  // ---- Items: pairs of tiles of queries

  void run_band(const Box& band) {
    for (int x = band.begin[2]; x < band.end[2]; x += plan_.lanes) {
      for (int z = band.begin[0]; z < band.end[0]; ++z) {
        for (int k = band.begin[1]; k < band.end[1]; k += item_rows()) {
          for (int head = 0; head < plan_.head_group; head += item_heads()) {
            run_item({x, z, k, 0, head}, band);
          }
        }
      }
    }
  }

  void run_item(const Place& item, const Box& band) {
    KeyRange rows = {std::numeric_limits<int>::max(), 0};
    has_queries_apart_ = has_sums_ = false;
    bool is_far = false, some_sum_delta = false;
    for (int t = 0; t < num_tiles_; ++t) {
      const Tile& tile = tiles_[t];
      if (!set_tile(t, item, band)) continue;
      rows = {std::min(rows.begin, tile.rows.begin), std::max(rows.end, tile.rows.end)};
      has_queries_apart_ |= (tile.queries_apart | tile.grad_outputs_apart) != 0;
      is_far |= tile.softmax.is_far<bfloat16>(/*is_whole=*/false);
      some_sum_delta |= tile.sums_delta;
    }
    if (HWY_UNLIKELY(is_far)) sum_logits(item, rows);
    if (some_sum_delta) sum_deltas(item, rows);
    for_each_step(item, rows, [&](const Step& step) { run_step(step); });
    finish_waiting();
    add_to_queries();
    if (grad_query_ == nullptr) return;
    for (int pair = 0; pair < tile_pairs(); ++pair) write(pair);
  }

  // Steps that some query of the item sees; `rows` of keys along the middle axis.
  template <class Visit>
  void for_each_step(const Place& item, const KeyRange& rows, const Visit& visit) const {
    const auto visit_row = [&](const KeyRow& row, int y, int columns) {
      for (int column = 0; column < columns; column += kStep) {
        Step step = {row, column, {}};
        bool is_seen = false;
        for (int t = 0; t < num_tiles_; ++t) {
          step.is_seen[t] = sees(tiles_[t], row.is_additional, y, column);
          is_seen |= step.is_seen[t];
        }
        if (is_seen) visit(step);
      }
    };
    const AxisGroup& outer = keys_.axis(0);
    const int position = outer.position(item.z);
    for (int z = outer.begin(position); z < outer.end(position); ++z) {
      for (int y = rows.begin; y < rows.end; ++y) {
        const bool is_seen = std::any_of(tiles_, tiles_ + num_tiles_,
                                         [&](const Tile& tile) { return sees_row(tile, y); });
        if (is_seen) visit_row(row_of_keys(z, y, first_column(item)), y, item_columns_);
      }
    }
    if (plan_.additional_tokens > 0) visit_row(row_of_additional(), /*y=*/0, additional_columns());
  }

  // ---- Logits of which lse has too few digits for their probabilities

  // Computed twice, so that probabilities are what follows from them as they are here.
  void sum_logits(const Place& item, const KeyRange& rows) {
    for (Tile& tile : tiles_) tile.softmax.begin_sums();
    for_each_step(item, rows, [&](const Step& step) {
      for (int t = 0; t < num_tiles_; ++t) {
        if (t % 2 == 0 && step.is_seen_by(t / 2)) multiply_keys(step, t / 2, /*buffer=*/0);
        if (step.is_seen[t]) add_logits(step, t);
      }
    });
    for (int t = 0; t < num_tiles_; ++t) {
      RowSoftmax<D>& softmax = tiles_[t].softmax;
      if (tiles_[t].num_queries == 0) continue;
      softmax.leave_lse<bfloat16>(/*is_whole=*/false);
      for (int q = 0; q < kTile; ++q) softmax.base_rest[q] -= std::log2(softmax.factor[q]);
    }
  }
  void add_logits(const Step& step, int t) {
    const D d;
    const MatrixView view = view_for(tiles_[t], step.row.is_additional);
    const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
    HWY_ALIGN float rows[kStep * kTile];
    const float* from = logits(/*buffer=*/0) + t % 2 * kTile;
    for (int i = 0; i < kStep; ++i, from += kQueries) {
      const auto seen = static_cast<__mmask16>(view.seen_by(step.column + i));
      hn::Store(
          {_mm512_mask_mul_ps(hidden.raw, seen, hn::Load(d, from).raw, hn::Set(d, scale_).raw)}, d,
          rows + ptrdiff_t{i} * kTile);
    }
    tiles_[t].softmax.add_keys(kStep, rows);
  }

  // ---- Delta of queries to which the rounding of output would show

  // Computes P and dP beforehand.
  void sum_deltas(const Place& item, const KeyRange& rows) {
    for (Tile& tile : tiles_) {
      std::fill_n(tile.probability_sums, kTile, 0.0f);
      std::fill_n(tile.delta_sums, kTile, 0.0f);
    }
    for_each_step(item, rows, [&](const Step& step) {
      for (int pair = 0; pair < tile_pairs(); ++pair) {
        const auto is_wanted = [&](int t) { return step.is_seen[t] && tiles_[t].sums_delta; };
        if (!is_wanted(2 * pair) && !is_wanted(2 * pair + 1)) continue;
        multiply_keys(step, pair, /*buffer=*/0);
        multiply_values(step, pair, /*buffer=*/0);
        for (int t = 2 * pair; t < 2 * pair + 2; ++t) {
          if (is_wanted(t)) add_to_deltas(step, t);
        }
      }
    });
    const D d;
    for (int t = 0; t < num_tiles_; ++t) {
      Tile& tile = tiles_[t];
      if (!tile.sums_delta) continue;
      // A quotient, as lse was rounded too: of a query with one key it is that key's dP.
      const auto sum = hn::Load(d, tile.probability_sums);
      const auto delta =
          hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(d)), hn::Div(hn::Load(d, tile.delta_sums), sum));
      hn::Store(hn::Sub(delta, hn::Load(d, tile.softmax.grad_lse)), d, tile.mean);
    }
  }
  void add_to_deltas(const Step& step, int t) {
    const D d;
    Tile& tile = tiles_[t];
    const MatrixView view = view_for(tile, step.row.is_additional);
    const auto base = hn::Load(d, tile.softmax.base), rest = hn::Load(d, tile.softmax.base_rest);
    auto probabilities = hn::Load(d, tile.probability_sums), deltas = hn::Load(d, tile.delta_sums);
    ptrdiff_t at = t % 2 * kTile;
    for (int i = 0; i < kStep; ++i, at += kQueries) {
      const auto seen = static_cast<__mmask16>(view.seen_by(step.column + i));
      const auto p = probability(logits(/*buffer=*/0) + at, base, rest);
      const auto grad_probability = hn::Load(d, products(/*buffer=*/0) + at);
      probabilities = {_mm512_mask_add_ps(probabilities.raw, seen, probabilities.raw, p.raw)};
      deltas = {_mm512_mask3_fmadd_ps(p.raw, grad_probability.raw, deltas.raw, seen)};
    }
    hn::Store(probabilities, d, tile.probability_sums);
    hn::Store(deltas, d, tile.delta_sums);
  }

  // ---- Steps

  // The products of a pair of tiles are multiplied while the pair before it waits for what is no
  // product: the machine does both at once.
  void run_step(const Step& step) {
    steps_[num_steps_++] = step;
    int last = tile_pairs() - 1;
    while (!step.is_seen_by(last)) --last;
    for (int pair = 0; pair <= last; ++pair) {
      if (!step.is_seen_by(pair)) continue;
      const int buffer = 1 - waiting_.buffer;
      multiply_keys(step, pair, buffer);
      multiply_values(step, pair, buffer);
      finish_waiting();
      waiting_ = {num_steps_ - 1, pair, buffer, pair == last};
    }
  }
  void finish_waiting() {
    if (waiting_.step < 0) return;
    differentiate();
    if (waiting_.is_last) finish_step(waiting_.step);
    waiting_.step = -1;
  }
  // P and dS of all its pairs are there.
  void finish_step(int s) {
    const Step& step = steps_[s];
    if (wants_key(step.row)) {
      add_to_keys(step, plan_.scratch.grad_logits, plan_.scratch.queries, plan_.key_pitch,
                  step.row.key_sums);
    }
    if (wants_value(step.row)) {
      add_to_keys(step, plan_.scratch.probabilities, plan_.scratch.grad_outputs, plan_.value_pitch,
                  step.row.value_sums);
    }
    if (HWY_UNLIKELY(has_queries_apart_)) add_queries_apart(step);
    if (s == kMostSteps - 1) make_room();
  }
  // Adds up all steps but one that has begun meanwhile: that becomes the first.
  void make_room() {
    const bool has_begun = num_steps_ > kMostSteps;
    num_steps_ = kMostSteps;
    add_to_queries();
    if (has_begun) steps_[num_steps_++] = steps_[kMostSteps];
  }

  bool wants_key(const KeyRow& row) const {
    return (row.is_additional ? pointers_.grad_additional_key : pointers_.grad_key) != nullptr;
  }
  bool wants_value(const KeyRow& row) const {
    return (row.is_additional ? pointers_.grad_additional_value : pointers_.grad_value) != nullptr;
  }

  float* logits(int buffer) const { return scratch_ + plan_.matrix.logits + buffer * kOfStep; }
  float* products(int buffer) const {
    return scratch_ + plan_.matrix.grad_probabilities + buffer * kOfStep;
  }
  // P and dS of a pair: 32 queries for each key of a step.
  bfloat16* of_pair(size_t array, int pair) const { return halves(array) + pair * kOfStep; }
  bfloat16* paired_gradients(int step, int pair) const {
    return of_pair(plan_.matrix.paired_grad_logits, step * tile_pairs() + pair);
  }

  void multiply_keys(const Step& step, int pair, int buffer) const {
    multiply(step, pair, step.row.keys, plan_.key_pitch, plan_.scratch.transposed_queries,
             logits(buffer));
  }
  void multiply_values(const Step& step, int pair, int buffer) const {
    multiply(step, pair, step.row.values, plan_.value_pitch, plan_.scratch.transposed_grad_outputs,
             products(buffer));
  }
  // The step's 32 rows of `pitch` entries times those of a pair's queries.
  void multiply(const Step& step, int pair, const bfloat16* rows, int pitch, size_t array,
                float* to) const {
    const ptrdiff_t stride = pitch * static_cast<ptrdiff_t>(sizeof(bfloat16));
    constexpr ptrdiff_t kWords = kQueries * kFloat;
    const bool is_first_seen = step.is_seen[2 * pair], is_second_seen = step.is_seen[2 * pair + 1];
    const float* words = queries_of(array, pair, pitch);
    rows += ptrdiff_t{step.column} * pitch;
    clear_sums<Tiles>();
    for (int e = 0; e < pitch; e += kStep, words += kTile * kQueries) {
      Tiles::template load<4>(rows + e, stride);
      Tiles::template load<5>(rows + e + ptrdiff_t{kTile} * pitch, stride);
      if (is_first_seen) {
        Tiles::template load<6>(words, kWords);
        Tiles::template multiply<0, 4, 6>();
        Tiles::template multiply<2, 5, 6>();
      }
      if (is_second_seen) {
        Tiles::template load<7>(words + kTile, kWords);
        Tiles::template multiply<1, 4, 7>();
        Tiles::template multiply<3, 5, 7>();
      }
    }
    constexpr ptrdiff_t kSecond = ptrdiff_t{kTile} * kQueries;
    if (is_first_seen) {
      Tiles::template store<0>(to, kWords);
      Tiles::template store<2>(to + kSecond, kWords);
    }
    if (is_second_seen) {
      Tiles::template store<1>(to + kTile, kWords);
      Tiles::template store<3>(to + kSecond + kTile, kWords);
    }
  }

  // Of a key, seen or not, for the queries of a tile.
  HWY_INLINE hn::Vec<D> probability(const float* logits, hn::Vec<D> base, hn::Vec<D> rest) const {
    const D d;
    // Rounded as it was when lse was made of it.
    const auto logit = in_register(hn::Mul(hn::Load(d, logits), hn::Set(d, scale_)));
    return exp2_scaled(d, hn::Sub(hn::Sub(logit, base), rest));
  }
  // Logits and dP of the pair that waits to P and dS.
  void differentiate() const {
    const Step& step = steps_[waiting_.step];
    MatrixView views[2];
    bool is_whole = true;
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * waiting_.pair + i;
      views[i] = view_for(tiles_[t], step.row.is_additional);
      if (step.is_seen[t]) is_whole &= views[i].holds(step.column, kStep);
    }
    is_whole ? differentiate<true>(views) : differentiate<false>(views);
  }
  // kIsWhole: every query sees every key.
  template <bool kIsWhole>
  void differentiate(const MatrixView (&views)[2]) const {
    const D d;
    using V = hn::Vec<D>;
    const Step& step = steps_[waiting_.step];
    const int pair = waiting_.pair;
    const float *logits = this->logits(waiting_.buffer),
                *products = this->products(waiting_.buffer);
    auto* probabilities = of_pair(plan_.scratch.probabilities, pair);
    auto* gradients = of_pair(plan_.scratch.grad_logits, pair);
    auto* paired = paired_gradients(waiting_.step, pair);
    const Tile* tiles = tiles_ + 2 * pair;
    const V base[2] = {hn::Load(d, tiles[0].softmax.base), hn::Load(d, tiles[1].softmax.base)};
    const V rest[2] = {hn::Load(d, tiles[0].softmax.base_rest),
                       hn::Load(d, tiles[1].softmax.base_rest)};
    const V mean[2] = {hn::Load(d, tiles[0].mean), hn::Load(d, tiles[1].mean)};
    const bool* is_seen = step.is_seen + 2 * pair;
    const __mmask16 is_query[2] = {is_seen[0] ? tiles[0].is_query : __mmask16{0},
                                   is_seen[1] ? tiles[1].is_query : __mmask16{0}};
    for (int i = 0; i < kStep; i += 2) {
      __m512i both[2];
      unroll<2>([&](auto k) VECINA_INLINE {
        const ptrdiff_t at = (ptrdiff_t{i} + k) * kQueries;
        V p[2], gradient[2];
        unroll<2>([&](auto t) VECINA_INLINE {
          __mmask16 seen = is_query[t];
          if constexpr (!kIsWhole) {
            seen &= static_cast<__mmask16>(views[t].seen_by(step.column + i + static_cast<int>(k)));
          }
          const auto difference = hn::Sub(hn::Load(d, products + at + t * kTile), mean[t]);
          p[t] = {_mm512_maskz_mov_ps(seen,
                                      probability(logits + at + t * kTile, base[t], rest[t]).raw)};
          gradient[t] = {_mm512_maskz_mul_ps(seen, p[t].raw, difference.raw)};
        });
        _mm512_storeu_si512(probabilities + at, Tiles::round_both(d, p[0], p[1]));
        both[k] = Tiles::round_both(d, gradient[0], gradient[1]);
        _mm512_storeu_si512(gradients + at, both[k]);
      });
      // Two keys side by side: of queries 0 to 3 and 8 to 11 of both tiles, and of the others.
      const ptrdiff_t at = i / 2 * kStep;
      _mm512_storeu_si512(paired + at, _mm512_unpacklo_epi16(both[0], both[1]));
      _mm512_storeu_si512(paired + kOfStep / 2 + at, _mm512_unpackhi_epi16(both[0], both[1]));
    }
  }

  // Adds P or dS of all pairs times their queries to the sums of the step's keys.
  void add_to_keys(const Step& step, size_t factors, size_t queries, int pitch, float* sums) const {
    const ptrdiff_t stride = pitch * kFloat;
    sums += ptrdiff_t{step.column} * pitch;
    for (int e = 0; e < pitch; e += kStep, sums += kStep) {
      load_sums<Tiles>(sums, pitch);
      for (int pair = 0; pair < tile_pairs(); ++pair) {
        if (!step.is_seen_by(pair)) continue;
        const bfloat16* rows = of_pair(factors, pair);
        const float* columns = queries_of(queries, pair, pitch) + e;
        Tiles::template load<4>(rows, kStepBytes);
        Tiles::template load<5>(rows + ptrdiff_t{kTile} * kQueries, kStepBytes);
        Tiles::template load<6>(columns, stride);
        Tiles::template load<7>(columns + kTile, stride);
        multiply_all<Tiles>();
      }
      store_sums<Tiles>(sums, pitch);
    }
  }

  // Adds what waits to the sums of the queries: rows of entries, columns as unpacking left them.
  void add_to_queries() {
    // Without any step too: gradients are zero then.
    if ((num_steps_ > 0 || !has_sums_) && grad_query_ != nullptr) {
      for (int pair = 0; pair < tile_pairs(); ++pair) add_pair_to_queries(pair);
      add_keys_apart();
      has_sums_ = true;
    }
    num_steps_ = 0;
  }
  float* query_sums(int pair) const {
    return scratch_ + plan_.scratch.grad_queries + ptrdiff_t{pair} * kQueries * plan_.key_pitch;
  }
  void add_pair_to_queries(int pair) const {
    float* sums = query_sums(pair);
    for (int e = 0; e < plan_.key_pitch; e += kStep, sums += kStep * kQueries) {
      has_sums_ ? load_sums<Tiles>(sums, kQueries) : clear_sums<Tiles>();
      for (int s = 0; s < num_steps_; ++s) {
        if (!steps_[s].is_seen_by(pair)) continue;
        const KeyRow& row = steps_[s].row;
        const ptrdiff_t pitch = row.transposed_pitch;
        const ptrdiff_t stride = pitch * static_cast<ptrdiff_t>(sizeof(bfloat16));
        const bfloat16* keys = row.transposed + steps_[s].column + e * pitch;
        const bfloat16* gradients = paired_gradients(s, pair);
        Tiles::template load<4>(keys, stride);
        Tiles::template load<5>(keys + kTile * pitch, stride);
        Tiles::template load<6>(gradients, kStepBytes);
        Tiles::template load<7>(gradients + kOfStep / 2, kStepBytes);
        multiply_all<Tiles>();
      }
      store_sums<Tiles>(sums, kQueries);
    }
  }
  // Where unpacking halves leaves query q of a pair's tile t in rows of sums, and what stands
  // there.
  static constexpr int column_of(int t, int q) {
    return q / 4 % 2 * kTile + t * 8 + q / 8 * 4 + q % 4;
  }
  static constexpr int tile_of(int column) { return column % kTile / 8; }
  static constexpr int query_of(int column) {
    return column % 8 / 4 * 8 + column / kTile * 4 + column % 4;
  }

  void write(int pair) const {
    const D d;
    const ptrdiff_t stride = query_stride(plan_.grad_query);
    const auto scale = hn::Set(d, static_cast<float>(plan_.scale));
    const float* sums = query_sums(pair);
    for (int e = 0; e < plan_.head_dim; e += kTile, sums += ptrdiff_t{kTile} * kQueries) {
      const auto count = static_cast<size_t>(std::min(kTile, plan_.head_dim - e));
      for (int half = 0; half < 2; ++half) {
        transpose_16x16(d, RegularRows<float>(sums, kQueries), static_cast<size_t>(half * kTile),
                        [&](size_t i, hn::Vec<D> v) HWY_ATTR {
                          const int column = static_cast<int>(i) + half * kTile;
                          const Tile& tile = tiles_[2 * pair + tile_of(column)];
                          const int q = query_of(column);
                          if (q >= tile.num_queries) return;
                          store_some(d, hn::Mul(v, scale), count,
                                     tile.grad_queries + q * stride + e);
                        });
      }
    }
  }

  // ---- What is not finite, to the sums of those who see it

  // Queries of tile t that see the column: a bit for each.
  unsigned seen_by(const Step& step, int t, int column) const {
    if (!step.is_seen[t]) return 0;
    const MatrixView view = view_for(tiles_[t], step.row.is_additional);
    return view.seen_by(column) & ((1U << tiles_[t].num_queries) - 1);
  }

  // Of queries and grad_output, to the sums of a step's keys.
  void add_queries_apart(const Step& step) const {
    const KeyRow& row = step.row;
    for (int t = 0; t < num_tiles_; ++t) {
      if (!step.is_seen[t]) continue;
      const Tile& tile = tiles_[t];
      const auto add = [&](int q, unsigned apart, const bfloat16* entries, int size, size_t array,
                           int pitch, float* sums) {
        if ((apart >> q & 1) == 0) return;
        const bfloat16* factors = of_pair(array, t / 2) + t % 2 * kTile + q;
        for (int i = 0; i < kStep; ++i) {
          if ((seen_by(step, t, step.column + i) >> q & 1) == 0) continue;
          add_apart(entries, size, static_cast<float>(factors[i * kQueries]), 1,
                    sums + ptrdiff_t{step.column + i} * pitch);
        }
      };
      for (int q = 0; q < tile.num_queries; ++q) {
        if (wants_key(row)) {
          add(q, tile.queries_apart, tile.queries + q * query_stride(), plan_.head_dim,
              plan_.scratch.grad_logits, plan_.key_pitch, row.key_sums);
        }
        if (wants_value(row)) {
          add(q, tile.grad_outputs_apart, tile.grad_outputs + q * output_stride(plan_.grad_output),
              plan_.head_dim_value, plan_.scratch.probabilities, plan_.value_pitch, row.value_sums);
        }
      }
    }
  }
  // Of keys, to the sums of queries.
  void add_keys_apart() const {
    if (HWY_LIKELY(!has_apart_)) return;
    for (int s = 0; s < num_steps_; ++s) {
      const Step& step = steps_[s];
      for (int i = 0; i < kStep; ++i) {
        if (!is_apart(step.row, step.column + i)) continue;
        const bfloat16* key = key_of(step.row, step.column + i);
        for (int t = 0; t < num_tiles_; ++t) {
          const unsigned seen = seen_by(step, t, step.column + i);
          const bfloat16* factors = paired_gradients(s, t / 2) + i / 2 * kStep + i % 2;
          for (int q = 0; q < kTile; ++q) {
            if ((seen >> q & 1) == 0) continue;
            const int column = column_of(t % 2, q);
            const bfloat16 factor = factors[column / kTile * (kOfStep / 2) + column % kTile * 2];
            add_apart(key, plan_.head_dim, static_cast<float>(factor), kQueries,
                      query_sums(t / 2) + column);
          }
        }
      }
    }
  }
  static void add_apart(const bfloat16* entries, int size, float factor, ptrdiff_t stride,
                        float* sums) {
    for (int e = 0; e < size; ++e) {
      if (!is_finite(entries[e])) sums[e * stride] += factor * static_cast<float>(entries[e]);
    }
  }

  const BackwardPointers& pointers_;
  const float scale_;           // to powers of two
  Step steps_[kMostSteps + 1];  // and one that has begun
  int num_steps_ = 0;
  // The pair of tiles whose logits and dP were computed last; two buffers take turns.
  struct Waiting {
    int step = -1, pair = 0, buffer = 0;  // -1: none
    bool is_last = false;                 // of the step's pairs
  } waiting_;
  bool has_sums_ = false;           // of steps that were added before
  bool has_queries_apart_ = false;  // some query or grad_output of the item is not finite
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_BACKWARD_INL_H_
