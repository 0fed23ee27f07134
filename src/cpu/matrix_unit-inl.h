// SPDX-License-Identifier: MIT
// One unit of the forward pass in the matrix form: tiles of 16 queries, two at a time, by steps of
// 32 keys. Queries are rows of the first product, read where they lie, and weights are rounded into
// what the second one reads. Only the keys that a query sees are taken out of the rows of logits;
// the weights of all others are zero. Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_UNIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_UNIT_INL_H_
#undef VECINA_CPU_MATRIX_UNIT_INL_H_
#else
#define VECINA_CPU_MATRIX_UNIT_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/forward.h"
#include "cpu/matrix_keys-inl.h"
#include "cpu/matrix_softmax-inl.h"
#include "cpu/matrix_tiles-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Tiles>
class MatrixUnit : MatrixKeys {
 public:
  MatrixUnit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit, void* scratch)
      : MatrixKeys(plan, pointers, unit, scratch, /*num_tiles=*/2),
        output_(tensor_at<bfloat16>(pointers.output, plan.output, batch_, head_)),
        lse_(tensor_at<float>(pointers.lse, plan.lse, batch_, head_)),
        scale_(static_cast<float>(plan.scale * kLog2E)),
        may_have_windows_(!is_shared_ && item_columns_ == kStep && most_columns() <= kTile),
        are_halves_(most_columns() <= kMatrixHalf) {}

  void run() {
    pack_additional();
    Tiles::configure();
    walk_bands([&](int z, int y, int /*end_y*/) { pack_row(z, y); },
               [&](const Box& band) { run_band(band); });
    Tiles::release();
  }

 private:
  static constexpr int kMostSteps = kMatrixColumns / kStep;

  // That a query sees in a row of keys or of additional tokens.
  int64_t most_columns() const {
    return std::max<int64_t>(lane_axis().window.kernel_size, plan_.additional_tokens);
  }

  struct Tile : QueryTile {
    const bfloat16* queries;
    ptrdiff_t stride;  // from one query to the next, in bytes
    bfloat16* output;
    float* lse;
    bool has_sums;    // of keys that were flushed before
    int num_windows;  // of steps that wait for their softmax
    MatrixWindow windows[kMostSteps];
    MatrixSoftmax softmax;
  };

  // Columns of a KeyRow, from `column` on, that are computed together; their logits and weights
  // stand in `slot` and those behind it.
  struct Step {
    const float *keys, *values;
    const KeyRow* row;
    int column, slot;
    bool is_seen[2];
  };

  // ---- Items: two tiles of queries, which share most of their keys

  void run_band(const Box& band) {
    const int rows = item_rows(), heads = item_heads();
    // The same pairs wherever a band begins: which keys are summed up together depends on both.
    const int first = band.begin[1] / rows * rows;
    for (int x = band.begin[2]; x < band.end[2]; x += plan_.lanes) {
      for (int z = band.begin[0]; z < band.end[0]; ++z) {
        for (int k = first; k < band.end[1]; k += rows) {
          if (plan_.fetches_far) fetch_queries_after({x, z, k, 0, 0}, rows, first, band);
          for (int head = 0; head < plan_.head_group; head += heads) {
            run_item({x, z, k, 0, head}, band);
          }
        }
      }
    }
  }

  // Those of the items after `place`, of so many rows and of all heads: the machine does not
  // foresee tokens of one head.
  void fetch_queries_after(Place place, int rows, int first, const Box& band) const {
    place.k += rows;
    if (place.k >= band.end[1]) {
      place.k = first;
      if (++place.z == band.end[0]) {
        place.z = band.begin[0];
        place.x += plan_.lanes;
      }
    }
    const int count = std::min(plan_.lanes, band.end[2] - place.x);
    if (count <= 0) return;
    for (int r = 0; r < rows; ++r, ++place.k) {
      if (place.k < band.begin[1] || place.k >= band.end[1]) continue;
      for (place.head = 0; place.head < plan_.head_group; ++place.head) {
        prefetch_rows(query_ + query_offset(plan_.query, place), query_stride(), count,
                      plan_.head_dim);
      }
    }
  }

  void run_item(const Place& place, const Box& band) {
    set_tiles(place, band);
    const int position = keys_.axis(0).position(place.z);
    const int begin = std::min(tiles_[0].rows.begin, tiles_[1].rows.begin);
    const int end = std::max(tiles_[0].rows.end, tiles_[1].rows.end);
    for (int z = keys_.axis(0).begin(position); z < keys_.axis(0).end(position); ++z) {
      for (int y = begin; y < end; ++y) {
        // One that no tile sees may not be packed.
        const bool is_seen = sees_row(tiles_[0], y) || sees_row(tiles_[1], y);
        add_row(is_seen ? row_of_keys(z, y, first_column_) : KeyRow{}, y, item_columns_);
      }
    }
    if (plan_.additional_tokens > 0) {
      add_row(row_of_additional(), /*y=*/0, additional_columns());
    }
    flush();
    for (int t = 0; t < 2; ++t) write(t);
  }

  void set_tiles(const Place& place, const Box& band) {
    first_column_ = first_column(place);
    set_tile(0, place, band);
    Place other;
    if (find_tile(place, 1, &other)) {
      set_tile(1, other, band);
    } else {
      tiles_[1].num_queries = 0;
      tiles_[1].rows = tiles_[0].rows;
    }
    // Not at the border of a causal axis.
    has_windows_ = may_have_windows_ && tiles_[0].view.of(0).begin == 0;
  }

  void set_tile(int t, const Place& place, const Box& band) {
    Tile& tile = tiles_[t];
    place_tile(place, band, first_column_, &tile);
    if (tile.num_queries == 0) return;
    tile.output = output_ + output_offset(plan_.output, place);
    tile.lse = lse_ + output_offset(plan_.lse, place);
    tile.has_sums = false;
    tile.num_windows = 0;
    tile.softmax.begin();
    if (plan_.fetches_far) {
      prefetch_rows<Fetch::far>(tile.output, output_stride(), tile.num_queries,
                                plan_.head_dim_value);
    }
    const ptrdiff_t stride = query_stride();
    tile.queries = query_ + query_offset(plan_.query, place);
    tile.stride = stride * static_cast<ptrdiff_t>(sizeof(bfloat16));
    // Sixteen rows in few of the cache's sets push each other out.
    constexpr ptrdiff_t kFewSets = 1024;
    const int size = 2 * plan_.key_words;
    if (tile.num_queries == kTile && plan_.head_dim == size && tile.stride % kFewSets != 0) return;
    auto* copy = reinterpret_cast<bfloat16*>(scratch_ + plan_.scratch.queries) + t * kTile * size;
    for (int q = 0; q < kTile; ++q) {
      bfloat16* to = copy + q * size;
      const int count = q < tile.num_queries ? plan_.head_dim : 0;
      std::copy_n(tile.queries + q * stride, count, to);
      std::fill(to + count, to + size, bfloat16());
    }
    tile.queries = copy;
    tile.stride = size * static_cast<ptrdiff_t>(sizeof(bfloat16));
  }

  // Rows that no tile sees take their slots too: what is summed up together does not depend on
  // them.
  void add_row(const KeyRow& row, int y, int columns) {
    rows_[num_rows_++] = row;
    for (int column = 0; column < columns; column += kStep) {
      const bool is_seen[2] = {sees(tiles_[0], row.is_additional, y, column),
                               sees(tiles_[1], row.is_additional, y, column)};
      if (is_seen[0] || is_seen[1]) {
        const ptrdiff_t pitch = plan_.value_pitch;
        steps_[num_steps_++] = {row.keys + column,
                                row.values + column / 2 * pitch,
                                &rows_[num_rows_ - 1],
                                column,
                                slots_,
                                {is_seen[0], is_seen[1]}};
        for (int t = 0; t < 2; ++t) is_any_seen_[t] |= is_seen[t];
      }
      slots_ += kStep;
      if (slots_ == kMatrixColumns) {
        flush();
        rows_[num_rows_++] = row;
      }
    }
  }

  // Takes the keys of all steps into the tiles' sums.
  void flush() {
    if (num_steps_ > 0) {
      multiply_keys();
      for (int t = 0; t < 2; ++t) {
        if (is_any_seen_[t]) take_softmax(t);
      }
      for (int column = 0; column < plan_.value_pitch; column += 2 * kTile) add_values(column);
      if (has_apart()) add_apart();
      for (int t = 0; t < 2; ++t) tiles_[t].has_sums |= is_any_seen_[t];
    }
    num_steps_ = num_rows_ = slots_ = 0;
    is_any_seen_[0] = is_any_seen_[1] = false;
  }

  // Of a tile's first query.
  float* logits(int t) const {
    return scratch_ + plan_.matrix.logits + ptrdiff_t{t} * kTile * kMatrixLogitsPitch;
  }
  bfloat16* weights(int t) const {
    return reinterpret_cast<bfloat16*>(scratch_ + plan_.matrix.weights) +
           ptrdiff_t{t} * kTile * kMatrixWeightsPitch;
  }
  float* sums(int t) const {
    return scratch_ + plan_.scratch.sums + ptrdiff_t{t} * kTile * plan_.value_pitch;
  }

  // Registers 0 and 2 are of the first tile of queries, 1 and 3 of the second.
  static void store_products(const bool (&is_seen)[2], float* const (&to)[2], ptrdiff_t stride) {
    if (is_seen[0]) {
      Tiles::template store<0>(to[0], stride);
      Tiles::template store<2>(to[0] + kTile, stride);
    }
    if (is_seen[1]) {
      Tiles::template store<1>(to[1], stride);
      Tiles::template store<3>(to[1] + kTile, stride);
    }
  }
  void load_queries(int word) const {
    if (is_any_seen_[0]) Tiles::template load<4>(tiles_[0].queries + 2 * word, tiles_[0].stride);
    if (is_any_seen_[1]) Tiles::template load<5>(tiles_[1].queries + 2 * word, tiles_[1].stride);
  }

  // Those of one step; of windows, the step before it is still read.
  float* step_logits(int t, const Step& step) const {
    if (!has_windows_) return logits(t) + step.slot;
    static_assert(kTile * kWindowsPitch + 2 * kTile * kStep <= kTile * kMatrixLogitsPitch);
    const ptrdiff_t which = (&step - steps_) % 2 * 2 + t;
    return windows(0) + 2 * kTile * kWindowsPitch + which * kTile * kStep;  // behind the windows
  }
  // Of a tile's first query.
  float* windows(int t) const { return logits(0) + t * kTile * kWindowsPitch; }

  // Logits of all steps. Windows of a few columns are taken out of those of a step while the next
  // one is computed: so few logits stay in L1.
  void multiply_keys() {
    const bool keeps_queries = plan_.key_words == kTile;
    if (keeps_queries) load_queries(0);
    for (int s = 0; s < num_steps_; ++s) {
      const Step& step = steps_[s];
      const ptrdiff_t pitch = step.row->key_pitch, stride = pitch * kFloat;
      const float* keys = step.keys;
      clear_sums<Tiles>();
      for (int word = 0; word < plan_.key_words; word += kTile, keys += kTile * pitch) {
        if (!keeps_queries) load_queries(word);
        Tiles::template load<6>(keys, stride);
        Tiles::template load<7>(keys + kTile, stride);
        if (step.is_seen[0]) {
          Tiles::template multiply<0, 4, 6>();
          Tiles::template multiply<2, 4, 7>();
        }
        if (step.is_seen[1]) {
          Tiles::template multiply<1, 5, 6>();
          Tiles::template multiply<3, 5, 7>();
        }
      }
      float* const to[2] = {step_logits(0, step), step_logits(1, step)};
      const ptrdiff_t to_stride = (has_windows_ ? kStep : kMatrixLogitsPitch) * kFloat;
      store_products(step.is_seen, to, to_stride);
      if (has_windows_ && s > 0) take_windows_of(steps_[s - 1]);
    }
    if (has_windows_) take_windows_of(steps_[num_steps_ - 1]);
  }

  // Takes the windows of both tiles out of the step's logits.
  void take_windows_of(const Step& step) {
    const bool is_additional = step.row->is_additional;
    const auto columns = static_cast<size_t>(is_additional ? plan_.additional_tokens
                                                           : lane_axis().window.kernel_size);
    for (int t = 0; t < 2; ++t) {
      if (!step.is_seen[t]) continue;
      Tile& tile = tiles_[t];
      const int i = tile.num_windows++;
      tile.windows[i] = {step.slot, is_additional ? 0 : tile.view.begin, is_additional ? 0 : 1};
      const auto take = [&](auto d) HWY_ATTR {
        take_windows(d, tile.windows[i], columns, scale_, step_logits(t, step),
                     windows(t) + i * static_cast<ptrdiff_t>(hn::MaxLanes(d)));
      };
      are_halves_ ? take(hn::Half<D>()) : take(D());
    }
  }

  MatrixBlocks blocks_of(int t) const {
    MatrixBlocks blocks;
    for (int s = 0; s < num_steps_; ++s) {
      const Step& step = steps_[s];
      if (!step.is_seen[t]) continue;
      const MatrixView view = view_for(tiles_[t], step.row->is_additional);
      for (int i = 0; i < kStep; i += kTile) blocks.add(step.slot + i, view, step.column + i);
    }
    return blocks;
  }

  // Logits of tile t to weights of bfloat16, and its sums to the new maximum.
  void take_softmax(int t) {
    Tile& tile = tiles_[t];
    if (!has_windows_) {
      turn_to_weights<Tiles>(blocks_of(t), scale_, logits(t), weights(t), &tile.softmax);
    } else {
      const auto turn =
          are_halves_ ? &turn_to_weights<Tiles, true> : &turn_to_weights<Tiles, false>;
      turn(tile.windows, tile.num_windows, windows(t), weights(t), &tile.softmax);
      tile.num_windows = 0;
    }
    if (tile.has_sums) shrink_sums(t);
  }

  void shrink_sums(int t) const {
    const D d;
    float* at = sums(t);
    for (int q = 0; q < kTile; ++q, at += plan_.value_pitch) {
      if (tiles_[t].softmax.shrink[q] == 1.0f) continue;
      const auto shrink = hn::Set(d, tiles_[t].softmax.shrink[q]);
      for (int i = 0; i < plan_.value_pitch; i += kTile) {
        hn::Store(hn::Mul(hn::Load(d, at + i), shrink), d, at + i);
      }
    }
  }

  // Weights times two tiles of values, from `column` on, to the sums.
  void add_values(int column) const {
    const ptrdiff_t stride = plan_.value_pitch * kFloat;
    constexpr ptrdiff_t kWeightsStride = kMatrixWeightsPitch * sizeof(bfloat16);
    float* const to[2] = {sums(0) + column, sums(1) + column};
    clear_sums<Tiles>();
    if (is_any_seen_[0] && tiles_[0].has_sums) {
      Tiles::template load<0>(to[0], stride);
      Tiles::template load<2>(to[0] + kTile, stride);
    }
    if (is_any_seen_[1] && tiles_[1].has_sums) {
      Tiles::template load<1>(to[1], stride);
      Tiles::template load<3>(to[1] + kTile, stride);
    }
    for (int s = 0; s < num_steps_; ++s) {
      const Step& step = steps_[s];
      Tiles::template load<6>(step.values + column, stride);
      Tiles::template load<7>(step.values + column + kTile, stride);
      if (step.is_seen[0]) {
        Tiles::template load<4>(weights(0) + step.slot, kWeightsStride);
        Tiles::template multiply<0, 4, 6>();
        Tiles::template multiply<2, 4, 7>();
      }
      if (step.is_seen[1]) {
        Tiles::template load<5>(weights(1) + step.slot, kWeightsStride);
        Tiles::template multiply<1, 5, 6>();
        Tiles::template multiply<3, 5, 7>();
      }
    }
    store_products(is_any_seen_, to, stride);
  }

  // Values that are not finite, to the sums of the queries that see them.
  void add_apart() const {
    for (int s = 0; s < num_steps_; ++s) {
      const Step& step = steps_[s];
      for (int column = step.column; column < step.column + kStep; ++column) {
        if ((step.row->apart[column / kTile] >> (column % kTile) & 1) == 0) continue;
        for (int t = 0; t < 2; ++t) {
          if (step.is_seen[t]) add_apart(step, column, t);
        }
      }
    }
  }
  void add_apart(const Step& step, int column, int t) const {
    const bfloat16* value = value_of(*step.row, column);
    const MatrixView view = view_for(tiles_[t], step.row->is_additional);
    for (int q = 0; q < tiles_[t].num_queries; ++q) {
      if ((view.seen_by(column) >> q & 1) == 0) continue;
      const bfloat16* row = weights(t) + q * kMatrixWeightsPitch + step.slot;
      // Not zero, however small.
      const float weight = std::max(static_cast<float>(row[column - step.column]),
                                    std::numeric_limits<float>::min());
      float* to = sums(t) + q * plan_.value_pitch;
      for (int e = 0; e < plan_.head_dim_value; ++e) {
        if (!is_finite(value[e])) to[e] += weight * static_cast<float>(value[e]);
      }
    }
  }

  void write(int t) const {
    const Tile& tile = tiles_[t];
    if (tile.num_queries == 0) return;
    const D d;
    const auto all = hn::Load(d, tile.softmax.sums);
    HWY_ALIGN float inverse[kTile];
    hn::Store(hn::IfThenZeroElse(hn::Eq(all, hn::Zero(d)), hn::Div(hn::Set(d, 1.0f), all)), d,
              inverse);
    const ptrdiff_t stride = output_stride();
    const float* from = sums(t);
    for (int q = 0; q < tile.num_queries; ++q, from += plan_.value_pitch) {
      bfloat16* to = tile.output + q * stride;
      const auto factor = hn::Set(d, inverse[q]);
      int e = 0;
      for (; e + kTile <= plan_.head_dim_value; e += kTile) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + e),
                            Tiles::round(d, hn::Mul(hn::Load(d, from + e), factor)));
      }
      if (e < plan_.head_dim_value) {
        store_some(d, hn::Mul(hn::Load(d, from + e), factor),
                   static_cast<size_t>(plan_.head_dim_value - e), to + e);
      }
    }
    if (!plan_.has_lse) return;
    HWY_ALIGN float lse[kTile];
    hn::Store(log_sum_exp(d, SoftmaxState<D>{hn::Load(d, tile.softmax.largest), all}), d, lse);
    for (int q = 0; q < tile.num_queries; ++q) {
      tile.lse[q * lane_axis().output_step * plan_.lse.token[2]] = lse[q];
    }
  }

  bfloat16* const output_;
  float* const lse_;
  const float scale_;            // to powers of two
  const bool may_have_windows_;  // of all columns that a query sees, taken out of one step
  const bool are_halves_;        // two of which fill a vector
  int first_column_ = 0;         // of the item, in packed rows
  bool has_windows_ = false;     // of this item
  Tile tiles_[2];
  KeyRow rows_[kMostSteps + 1];  // and one that ended where all slots were full
  Step steps_[kMostSteps];
  int num_rows_ = 0, num_steps_ = 0, slots_ = 0;
  bool is_any_seen_[2] = {};
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_UNIT_INL_H_
