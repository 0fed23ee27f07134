// SPDX-License-Identifier: MIT
// Walks one unit of the forward pass: pack, then tiles of query rows x one vector of queries.
// Part of each forward_<dtype>.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_FORWARD_INL_H_
#undef VECINA_CPU_FORWARD_INL_H_
#else
#define VECINA_CPU_FORWARD_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// logits() for every number of rows and keys.
template <KeyLayout kLayout, class D>
class LogitsTable {
 public:
  using T = hn::TFromD<D>;
  using Function = void (*)(D, int, const T*, ptrdiff_t, const T* const*, ptrdiff_t, T* const*);

  // How many of `keys` one call takes, so that none is left with few sums.
  static int take(int rows, int keys) {
    const int most = rows == 1 ? kMaxKeysOneRow : kMaxKeys;
    if (keys <= most) return keys;
    return keys < 2 * most ? (keys + 1) / 2 : most;
  }
  static Function get(int rows, int keys) {
    if (rows == 1) return kOneRow[static_cast<size_t>(keys - 1)];
    return (rows == 2 ? kTwoRows : kThreeRows)[static_cast<size_t>(keys - 1)];
  }

 private:
  template <int kRows, int kKeys>
  static constexpr Function kFunction = &logits<kRows, kKeys, kLayout, D>;
  static constexpr Function kOneRow[] = {kFunction<1, 1>, kFunction<1, 2>, kFunction<1, 3>,
                                         kFunction<1, 4>, kFunction<1, 5>, kFunction<1, 6>,
                                         kFunction<1, 7>, kFunction<1, 8>};
  static constexpr Function kTwoRows[] = {kFunction<2, 1>, kFunction<2, 2>, kFunction<2, 3>,
                                          kFunction<2, 4>};
  static constexpr Function kThreeRows[] = {kFunction<3, 1>, kFunction<3, 2>, kFunction<3, 3>,
                                            kFunction<3, 4>};
};

template <typename Element>
class ForwardUnit {
 public:
  using T = typename ComputeType<Element>::type;
  using D = hn::ScalableTag<T>;
  using LseType = T;  // float for all but double

  ForwardUnit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit, void* scratch)
      : plan_(plan), scratch_(static_cast<T*>(scratch)) {
    const auto num_boxes = static_cast<int64_t>(plan.boxes.size());
    const int64_t head_index = unit / num_boxes;
    box_ = plan.boxes[static_cast<size_t>(unit % num_boxes)];
    const int64_t batch = head_index / plan.heads_kv;
    const int64_t head_kv = head_index % plan.heads_kv;
    for (size_t a = 0; a < kRank; ++a) {
      axes_[a] = &plan.groups[a][static_cast<size_t>(box_.group[a])];
      ranges_[a] = a + 1 < kRank
                       ? key_range(*axes_[a], box_.begin[a], box_.end[a])
                       : lane_key_range(*axes_[a], box_.begin[a], box_.end[a], plan.lanes);
    }
    layout_ = key_layout(lane_axis());
    const int64_t head = head_kv * plan.head_group;
    query_ = at<const Element>(pointers.query, plan.query, batch, head);
    key_ = at<const Element>(pointers.key, plan.key, batch, head_kv);
    value_ = at<const Element>(pointers.value, plan.value, batch, head_kv);
    additional_key_ =
        at<const Element>(pointers.additional_key, plan.additional_key, batch, head_kv);
    additional_value_ =
        at<const Element>(pointers.additional_value, plan.additional_value, batch, head_kv);
    output_ = at<Element>(pointers.output, plan.output, batch, head);
    lse_ = at<LseType>(pointers.lse, plan.lse, batch, head);
    if (layout_ == KeyLayout::shifted) {
      columns_ = run_columns(lane_axis(), ranges_[2], plan.lanes);
      key_row_ = ptrdiff_t{columns_} * lane_axis().step * plan.head_dim;
    } else {
      key_row_ = ptrdiff_t{ranges_[2].size()} * plan.key_pitch;
    }
  }

  void run() {
    pack();
    for (int x = box_.begin[2]; x < box_.end[2]; x += plan_.lanes) {
      for (int z = box_.begin[0]; z < box_.end[0]; ++z) {
        const int rows = (box_.end[1] - box_.begin[1]) * rows_of_query();
        for (int row = 0; row < rows; row += kMaxRows) {
          run_tile(x, z, row, std::min(kMaxRows, rows - row));
        }
      }
    }
  }

 private:
  static constexpr int kMaxLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kMaxRuns = 16 * 1024 / (kMaxLanes * static_cast<int>(sizeof(T))) + 1;

  // One query row of a tile: queries at one outer position, phase and head.
  struct Row {
    int phase = 0, lanes = 0;        // lanes that are queries; the others repeat the last one
    int key_begin = 0, key_end = 0;  // of the middle axis
    std::array<const Element*, kMaxLanes> queries;
    Element* output = nullptr;  // lane l at the output token of its position
    LseType* lse = nullptr;
    bool is_masked = false;
    std::array<LaneView, kMaxLanes> views;
    T* weights = nullptr;
    T* sums = nullptr;
    bool has_sums = false;  // of keys that were flushed before
    int slots = 0, num_runs = 0;
    std::array<KeyRun<T>, kMaxRuns> runs;
    SoftmaxState<D> state{D()};
  };

  template <typename U>
  static U* at(const void* data, const Strides& strides, int64_t batch, int64_t head) {
    return static_cast<U*>(const_cast<void*>(data)) + batch * strides.batch + head * strides.head;
  }

  const AxisGroup& lane_axis() const { return *axes_[2]; }
  int rows_of_query() const { return lane_axis().phases * plan_.head_group; }
  // Row of packed keys and values that holds the given outer positions.
  ptrdiff_t packed_row(int z, int y) const {
    return ptrdiff_t{z - ranges_[0].begin} * ranges_[1].size() + (y - ranges_[1].begin);
  }

  int64_t token_offset(const Strides& strides, int64_t z, int64_t y) const {
    return z * strides.token[0] + y * strides.token[1];
  }

  void pack() {
    zeros_ = reinterpret_cast<const Element*>(scratch_ + plan_.scratch.zeros);
    std::fill_n(scratch_ + plan_.scratch.zeros, plan_.scratch.num_zeros, T{0});
    for (int z = ranges_[0].begin; z < ranges_[0].end; ++z) {
      for (int y = ranges_[1].begin; y < ranges_[1].end; ++y) pack_row(z, y);
    }
    T* keys = scratch_ + plan_.scratch.additional_keys;
    T* values = scratch_ + plan_.scratch.additional_values;
    for (int64_t i = 0; i < plan_.additional_tokens; ++i) {
      copy_row(D(), additional_key_ + i * plan_.additional_key.token[2],
               static_cast<size_t>(plan_.head_dim), static_cast<size_t>(plan_.key_pitch),
               keys + i * plan_.key_pitch);
      copy_row(D(), additional_value_ + i * plan_.additional_value.token[2],
               static_cast<size_t>(plan_.head_dim_value), static_cast<size_t>(plan_.value_pitch),
               values + i * plan_.value_pitch);
    }
  }

  // The key token that stands at position p of the packed rows; -1: none, zeros do.
  int64_t token_at(int p) const {
    const AxisGroup& axis = lane_axis();
    if (layout_ == KeyLayout::shifted) {
      if (p < 0)
        p = axis.window.is_causal ? -1 : p + axis.window.kernel_size;
      else if (p >= axis.window.extent)
        p -= axis.window.kernel_size;
    }
    return p < 0 || p >= axis.window.extent ? -1 : axis.to_token(p);
  }

  void pack_row(int z, int y) {
    const KeyRange& range = ranges_[2];
    const AxisGroup& axis = lane_axis();
    const int64_t token_z = axes_[0]->to_token(z), token_y = axes_[1]->to_token(y);
    const Element* key = key_ + token_offset(plan_.key, token_z, token_y);
    const Element* value = value_ + token_offset(plan_.value, token_z, token_y);
    const ptrdiff_t row = packed_row(z, y);
    T* keys = scratch_ + plan_.scratch.keys + row * key_row_;
    T* values = scratch_ + plan_.scratch.values + row * range.size() * plan_.value_pitch;
    for (int p = range.begin; p < range.end; ++p) {
      const int64_t token = token_at(p);
      const auto i = static_cast<ptrdiff_t>(p - range.begin);
      copy_row(D(), token < 0 ? zeros_ : value + token * plan_.value.token[2],
               static_cast<size_t>(plan_.head_dim_value), static_cast<size_t>(plan_.value_pitch),
               values + i * plan_.value_pitch);
      if (layout_ == KeyLayout::shared) {
        copy_row(D(), key + token * plan_.key.token[2], static_cast<size_t>(plan_.head_dim),
                 static_cast<size_t>(plan_.key_pitch), keys + i * plan_.key_pitch);
      }
    }
    if (layout_ == KeyLayout::shared) return;
    std::array<const Element*, kMaxLanes> rows;
    for (int run = 0; run < axis.step; ++run) {
      for (int column = 0; column < columns_; column += plan_.lanes) {
        if (range.begin + column * axis.step + run >= range.end) break;
        for (int lane = 0; lane < plan_.lanes; ++lane) {
          const int p = range.begin + (column + lane) * axis.step + run;
          const int64_t token = p < range.end ? token_at(p) : -1;
          rows[static_cast<size_t>(lane)] = token < 0 ? zeros_ : key + token * plan_.key.token[2];
        }
        transpose_rows(D(), rows.data(), static_cast<size_t>(plan_.head_dim),
                       static_cast<size_t>(columns_ * axis.step), T{1},
                       keys + run * columns_ + column);
      }
    }
  }

  void run_tile(int x, int z, int first_row, int num_rows) {
    std::array<Row, kMaxRows> rows;
    for (int r = 0; r < num_rows; ++r) {
      set_up_row(x, z, first_row + r, r, &rows[static_cast<size_t>(r)]);
    }
    const int position_z = axes_[0]->position(z);
    const int num_keys = visible_keys(rows, num_rows);
    for (int key_z = axes_[0]->begin(position_z); key_z < axes_[0]->end(position_z); ++key_z) {
      for (int key_y = rows[0].key_begin; key_y < rows[static_cast<size_t>(num_rows - 1)].key_end;
           ++key_y) {
        // Windows only move forward from row to row: those that hold key_y follow each other.
        int first = 0, last = num_rows;
        while (key_y >= rows[static_cast<size_t>(first)].key_end) ++first;
        while (key_y < rows[static_cast<size_t>(last - 1)].key_begin) --last;
        if (first >= last) continue;  // between the windows of a downsampled axis
        for (int j = 0; j < num_keys; j += plan_.max_slots) {
          window_keys(x, packed_row(key_z, key_y), j, std::min(plan_.max_slots, num_keys - j),
                      &rows, num_rows, first, last);
        }
      }
    }
    for (int64_t j = 0; j < plan_.additional_tokens; j += plan_.max_slots) {
      const auto count =
          static_cast<int>(std::min<int64_t>(plan_.max_slots, plan_.additional_tokens - j));
      const T* keys = scratch_ + plan_.scratch.additional_keys + j * plan_.key_pitch;
      const T* values = scratch_ + plan_.scratch.additional_values + j * plan_.value_pitch;
      add_keys<KeyLayout::shared>(keys, {values, 0, count, 0, true, false}, &rows, num_rows, 0,
                                  num_rows);
    }
    for (int r = 0; r < num_rows; ++r) flush(&rows[static_cast<size_t>(r)], x, /*is_last=*/true);
  }

  void set_up_row(int x, int z, int index, int r, Row* row) {
    const AxisGroup& lane_group = lane_axis();
    const AxisGroup& middle = *axes_[1];
    const int head = index % plan_.head_group;
    row->phase = index / plan_.head_group % lane_group.phases;
    const int y = middle.position(box_.begin[1] + index / rows_of_query());
    row->key_begin = middle.begin(y);
    row->key_end = middle.end(y);
    const int position_z = axes_[0]->position(z);
    const Element* query =
        query_ + head * plan_.query.head +
        token_offset(plan_.query, axes_[0]->to_token(position_z), middle.to_token(y));
    row->output = output_ + head * plan_.output.head +
                  token_offset(plan_.output, axes_[0]->to_output(position_z), middle.to_output(y));
    row->lse = lse_ + head * plan_.lse.head +
               token_offset(plan_.lse, axes_[0]->to_output(position_z), middle.to_output(y));
    row->lanes = 0;
    for (int lane = 0; lane < plan_.lanes; ++lane) {
      const int p = lane_group.position(x + lane) + row->phase;
      const bool is_query = x + lane < box_.end[2] && p < lane_group.query_extent;
      if (is_query) row->lanes = lane + 1;
      // Lane 0 of phase 0 always is one.
      const int stand_in = is_query ? p
                                    : lane_group.position(x + std::max(row->lanes - 1, 0)) +
                                          (row->lanes > 0 ? row->phase : 0);
      row->queries[static_cast<size_t>(lane)] =
          query + lane_group.to_token(stand_in) * plan_.query.token[2];
      if (lane_group.window.is_causal) row->views[static_cast<size_t>(lane)] = causal_view(p);
    }
    row->is_masked =
        lane_group.window.is_causal &&
        (layout_ == KeyLayout::shared || lane_group.window.stride > 1 || row->views[0].begin > 0);
    const auto lanes = static_cast<size_t>(plan_.lanes);
    row->weights = scratch_ + plan_.scratch.weights +
                   static_cast<size_t>(r) * lanes * static_cast<size_t>(plan_.max_slots);
    row->sums = scratch_ + plan_.scratch.sums +
                static_cast<size_t>(r) * lanes * static_cast<size_t>(plan_.value_pitch);
    // Logits are powers of two's exponents from here on.
    constexpr double kLog2E = 1.44269504088896340736;
    transpose_rows(D(), row->queries.data(), static_cast<size_t>(plan_.head_dim), lanes,
                   static_cast<T>(plan_.scale * kLog2E), tile_queries(r));
  }

  T* tile_queries(int r) const {
    return scratch_ + plan_.scratch.queries +
           static_cast<size_t>(r) * static_cast<size_t>(plan_.lanes * plan_.head_dim);
  }

  // What a causal lane at position p sees. Stride 1 with the shifted layout: all from the border
  // on.
  LaneView causal_view(int p) const {
    const NaAxis& window = lane_axis().window;
    if (layout_ == KeyLayout::shared) {
      return {0, std::min(p + 1, window.extent), window.extent};
    }
    const int begin = borderless_begin(window, p);
    return {std::max(0, -begin), p - begin + 1, window.extent - begin};
  }

  // Keys along the innermost axis that some lane of the tile sees.
  int visible_keys(const std::array<Row, kMaxRows>& rows, int num_rows) const {
    const NaAxis& window = lane_axis().window;
    if (layout_ == KeyLayout::shifted || !window.is_causal) return window.kernel_size;
    int keys = 0;
    for (int r = 0; r < num_rows; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      keys = std::max(keys, row.views[static_cast<size_t>(std::max(row.lanes - 1, 0))].visible);
    }
    return keys;
  }

  // Keys [j, j + count) of the window in one packed row, for rows [first, last).
  void window_keys(int x, ptrdiff_t packed, int j, int count, std::array<Row, kMaxRows>* rows,
                   int num_rows, int first, int last) {
    const T* keys = scratch_ + plan_.scratch.keys + packed * key_row_;
    const T* values =
        scratch_ + plan_.scratch.values + packed * ranges_[2].size() * plan_.value_pitch;
    if (layout_ == KeyLayout::shifted) {
      const int block = x - box_.begin[2];
      const ptrdiff_t row = ptrdiff_t{block} * lane_axis().step + j;
      add_keys<KeyLayout::shifted>(keys + block,
                                   {values + row * plan_.value_pitch, 0, count, j, false, true},
                                   rows, num_rows, first, last);
    } else {
      add_keys<KeyLayout::shared>(
          keys + ptrdiff_t{j} * plan_.key_pitch,
          {values + ptrdiff_t{j} * plan_.value_pitch, 0, count, j, true, true}, rows, num_rows,
          first, last);
    }
  }

  // Logits of a run of keys for rows [first, last), flushing all rows before if one has no room.
  template <KeyLayout kLayout>
  void add_keys(const T* keys, const KeyRun<T>& run, std::array<Row, kMaxRows>* rows, int num_rows,
                int first, int last) {
    for (int r = first; r < last; ++r) {
      if ((*rows)[static_cast<size_t>(r)].slots + run.count <= plan_.max_slots) continue;
      for (int all = 0; all < num_rows; ++all) {
        flush(&(*rows)[static_cast<size_t>(all)], 0, /*is_last=*/false);
      }
      break;
    }
    const AxisGroup& axis = lane_axis();
    const int count_rows = last - first;
    for (int t = 0, take; t < run.count; t += take) {
      take = LogitsTable<kLayout, D>::take(count_rows, run.count - t);
      const T* key[kMaxKeysOneRow];
      for (int i = 0; i < take; ++i) {
        const int j = run.first_key + t + i;
        key[i] = kLayout == KeyLayout::shifted
                     ? keys + ptrdiff_t{j % axis.step} * columns_ + j / axis.step
                     : keys + ptrdiff_t{t + i} * plan_.key_pitch;
      }
      T* weights[kMaxRows];
      for (int r = 0; r < count_rows; ++r) {
        const Row& row = (*rows)[static_cast<size_t>(first + r)];
        weights[r] = row.weights + ptrdiff_t{row.slots + t} * plan_.lanes;
      }
      LogitsTable<kLayout, D>::get(count_rows, take)(
          D(), plan_.head_dim, tile_queries(first), ptrdiff_t{plan_.lanes} * plan_.head_dim, key,
          kLayout == KeyLayout::shifted ? ptrdiff_t{columns_} * axis.step : 1, weights);
    }
    for (int r = first; r < last; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      KeyRun<T>& added = row.runs[static_cast<size_t>(row.num_runs++)];
      added = run;
      added.slot = row.slots;
      row.slots += run.count;
    }
  }

  // Softmax and values of the keys that a row holds; the last time also output and lse.
  void flush(Row* row, int x, bool is_last) {
    if (row->slots == 0 && !is_last) return;
    const D d;
    if (row->is_masked) {
      for (int i = 0; i < row->num_runs; ++i) {
        const KeyRun<T>& run = row->runs[static_cast<size_t>(i)];
        if (run.is_window) hide(d, run, row->views.data(), row->weights);
      }
    }
    HWY_ALIGN T shrink[kMaxLanes];
    HWY_ALIGN T inverse[kMaxLanes];
    hn::Store(softmax(d, static_cast<size_t>(row->slots), row->weights, &row->state), d, shrink);
    if (is_last) {
      const auto sum = row->state.sum;
      hn::Store(hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(d)), hn::Div(hn::Set(d, T{1}), sum)), d,
                inverse);
      if (plan_.has_lse) write_lse(*row, x);
    }
    const Flush how = {is_last, x, shrink, inverse};
    weigh_lanes(row, how);
    row->has_sums = true;
    row->slots = row->num_runs = 0;
  }

  struct Flush {
    bool is_last;
    int x;
    const T *shrink, *inverse;
  };

  void weigh_lanes(Row* row, const Flush& how) {
    const AxisGroup& axis = lane_axis();
    const bool has_views = row->is_masked && (layout_ == KeyLayout::shared || axis.phases > 1);
    const ValueArguments<T> arguments = {row->runs.data(),
                                         row->num_runs,
                                         row->weights,
                                         plan_.lanes,
                                         plan_.value_pitch,
                                         axis.step,
                                         has_views ? row->views.data() : nullptr};
    bool is_stairs = layout_ == KeyLayout::shifted && axis.step == 1;
    for (int i = 0; i < row->num_runs; ++i) {
      const KeyRun<T>& run = row->runs[static_cast<size_t>(i)];
      is_stairs = is_stairs && (run.is_shared || run.count >= 3);
    }
    int lane = 0;
    for (; lane + 4 <= row->lanes; lane += 4) {
      if (layout_ == KeyLayout::shared) {
        weigh<Quad::level>(row, arguments, how, lane);
      } else if (is_stairs) {
        weigh<Quad::stairs>(row, arguments, how, lane);
      } else {
        for (int i = 0; i < 4; ++i) weigh<Quad::single>(row, arguments, how, lane + i);
      }
    }
    for (; lane < row->lanes; ++lane) weigh<Quad::single>(row, arguments, how, lane);
  }

  template <Quad kQuad>
  void weigh(Row* row, const ValueArguments<T>& arguments, const Flush& how, int lane) {
    ptrdiff_t column = 0;
    for (; column + 2 * plan_.lanes <= plan_.value_pitch; column += 2 * plan_.lanes) {
      weigh_columns<kQuad, 2>(row, arguments, how, lane, column);
    }
    if (column < plan_.value_pitch) weigh_columns<kQuad, 1>(row, arguments, how, lane, column);
  }

  template <Quad kQuad, int kVectors>
  HWY_NOINLINE void weigh_columns(Row* row, const ValueArguments<T>& arguments, const Flush& how,
                                  int lane, ptrdiff_t column) {
    constexpr int kLanes = kQuad == Quad::single ? 1 : 4;
    const D d;
    const ptrdiff_t vector = plan_.lanes;
    hn::Vec<D> sums[4 * kVectors];
    unroll<4 * kVectors>([&](auto i) HWY_ATTR { sums[i] = hn::Zero(d); });
    const auto kept = [&](size_t q, size_t v) {
      return row->sums + (lane + static_cast<ptrdiff_t>(q)) * plan_.value_pitch + column +
             static_cast<ptrdiff_t>(v) * vector;
    };
    if (row->has_sums) {
      unroll<kLanes>([&](auto q) HWY_ATTR {
        const auto factor = hn::Set(d, how.shrink[static_cast<size_t>(lane) + q]);
        unroll<kVectors>([&](auto v) HWY_ATTR {
          sums[q * kVectors + v] = hn::Mul(factor, hn::LoadU(d, kept(q, v)));
        });
      });
    }
    add_values<kQuad, kVectors>(d, arguments, lane, column, sums);
    if constexpr (kQuad == Quad::single) {
      unroll<kVectors>([&](auto v) HWY_ATTR {
        sums[v] = hn::Add(hn::Add(sums[v], sums[kVectors + v]),
                          hn::Add(sums[2 * kVectors + v], sums[3 * kVectors + v]));
      });
    }
    const AxisGroup& axis = lane_axis();
    unroll<kLanes>([&](auto q) HWY_ATTR {
      const int p = axis.position(how.x + lane + static_cast<int>(size_t{q})) + row->phase;
      Element* output = row->output + axis.to_output(p) * plan_.output.token[2];
      unroll<kVectors>([&](auto v) HWY_ATTR {
        if (how.is_last) {
          const auto factor = hn::Set(d, how.inverse[static_cast<size_t>(lane) + q]);
          const ptrdiff_t at = column + static_cast<ptrdiff_t>(size_t{v}) * vector;
          if (at < plan_.head_dim_value) {
            store_some(d, hn::Mul(factor, sums[q * kVectors + v]),
                       static_cast<size_t>(plan_.head_dim_value - at), output + at);
          }
        } else {
          hn::StoreU(sums[q * kVectors + v], d, kept(q, v));
        }
      });
    });
  }

  void write_lse(const Row& row, int x) {
    const D d;
    const AxisGroup& axis = lane_axis();
    HWY_ALIGN T lse[kMaxLanes];
    hn::Store(log_sum_exp(d, row.state), d, lse);
    for (int lane = 0; lane < row.lanes; ++lane) {
      const int p = axis.position(x + lane) + row.phase;
      row.lse[axis.to_output(p) * plan_.lse.token[2]] = lse[lane];
    }
  }

  const ForwardPlan& plan_;
  T* scratch_;
  Box box_;
  std::array<const AxisGroup*, kRank> axes_;
  std::array<KeyRange, kRank> ranges_;
  KeyLayout layout_;
  int columns_ = 0;        // of one run of transposed keys
  ptrdiff_t key_row_ = 0;  // elements of one packed row of keys
  const Element *query_, *key_, *value_, *additional_key_, *additional_value_;
  const Element* zeros_ = nullptr;
  Element* output_;
  LseType* lse_;
};

template <typename Element>
void run_forward_unit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit,
                      void* scratch) {
  ForwardUnit<Element>(plan, pointers, unit, scratch).run();
}

template <typename Element>
ForwardKernel make_forward_kernel() {
  using T = typename ComputeType<Element>::type;
  return {&run_forward_unit<Element>, static_cast<int>(hn::Lanes(hn::ScalableTag<T>())), sizeof(T),
          hwy::TargetName(HWY_TARGET)};
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_FORWARD_INL_H_
