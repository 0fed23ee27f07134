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
#include <type_traits>
#include <utility>

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
    if (keys > most) return keys == most + 1 ? (keys + 1) / 2 : most;
    return keys == 6 && rows > 1 ? 3 : keys;
  }
  static Function get(int rows, int keys) {
    if (rows == 1) return kOneRow[static_cast<size_t>(keys - 1)];
    return (rows == 2 ? kTwoRows : kThreeRows)[static_cast<size_t>(keys - 1)];
  }

 private:
  template <int kRows, int kKeys>
  static constexpr Function function() {
    if constexpr (kRows > 1 && (kKeys > kMaxKeys || kKeys == 6)) {
      return nullptr;  // never taken
    } else {
      return &logits<kRows, kKeys, kLayout, D>;
    }
  }
  template <int kRows, int... kKeys>
  static constexpr std::array<Function, sizeof...(kKeys)> table(
      std::integer_sequence<int, kKeys...>) {
    return {function<kRows, kKeys + 1>()...};
  }
  using AllKeys = std::make_integer_sequence<int, kMaxKeysOneRow>;
  static constexpr auto kOneRow = table<1>(AllKeys());
  static constexpr auto kTwoRows = table<2>(AllKeys());
  static constexpr auto kThreeRows = table<3>(AllKeys());
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
        for (int row = 0; row < rows; row += kTileRows) {
          run_tile(x, z, row, std::min(kTileRows, rows - row));
        }
      }
    }
  }

 private:
  static constexpr int kMaxLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kMaxRuns = kWeightBytes / (kMaxLanes * static_cast<int>(sizeof(T))) + 1;

  // One query row of a tile: queries at one outer position, phase and head.
  struct Row {
    int phase = 0, lanes = 0;        // lanes that are queries; the others repeat the last one
    int key_begin = 0, key_end = 0;  // of the middle axis
    Element* output = nullptr;       // of lane 0
    LseType* lse = nullptr;
    bool is_masked = false;
    std::array<LaneView, kMaxLanes> views;
    T* weights = nullptr;
    T* sums = nullptr;
    bool has_sums = false;  // of keys that were flushed before
    int slots = 0, num_runs = 0;
    std::array<KeyRun<T>, kMaxRuns> runs;
    SoftmaxState<D> state;
  };

  using Rows = std::array<Row, kTileRows>;

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
    find_tokens();
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
    const int key = packed_key(lane_axis(), p);
    return key < 0 ? -1 : lane_axis().to_token(key);
  }

  // The tokens of one packed row (-1: zeros stand there), and where each key of a window lies in
  // it.
  void find_tokens() {
    tokens_ = reinterpret_cast<int64_t*>(scratch_ + plan_.scratch.tokens);
    for (int p = ranges_[2].begin; p < ranges_[2].end; ++p) {
      tokens_[p - ranges_[2].begin] = token_at(p);
    }
    key_offsets_ = reinterpret_cast<int64_t*>(scratch_ + plan_.scratch.key_offsets);
    const AxisGroup& axis = lane_axis();
    for (int j = 0; j < axis.window.kernel_size; ++j) {
      key_offsets_[j] = layout_ == KeyLayout::shifted
                            ? int64_t{j % axis.step} * columns_ + j / axis.step
                            : int64_t{j} * plan_.key_pitch;
    }
  }

  // True if all windows of the vector of queries at x lie within the axis as they are.
  bool is_inside(int x) const {
    const AxisGroup& axis = lane_axis();
    const int begin = borderless_begin(axis.window, axis.position(x));
    const int last = begin + axis.step * (kMaxLanes - 1);
    return begin >= 0 && last + axis.window.kernel_size <= axis.window.extent;
  }

  void pack_row(int z, int y) {
    const int64_t token_z = axes_[0]->to_token(z), token_y = axes_[1]->to_token(y);
    const Element* key = key_ + token_offset(plan_.key, token_z, token_y);
    const Element* value = value_ + token_offset(plan_.value, token_z, token_y);
    const ptrdiff_t row = packed_row(z, y);
    const ptrdiff_t count = ranges_[2].size();
    T* values = scratch_ + plan_.scratch.values + row * count * plan_.value_pitch;
    if (reads_in_place()) {
      const AxisGroup& axis = lane_axis();
      for (int x = box_.begin[2]; x < box_.end[2]; x += kMaxLanes) {
        if (is_inside(x)) continue;
        const ptrdiff_t first = ptrdiff_t{x - box_.begin[2]} * axis.step;
        copy_values(value, first, first + axis.step * (kMaxLanes - 1) + axis.window.kernel_size,
                    values);
      }
    } else {
      copy_values(value, 0, count, values);
    }
    T* keys = scratch_ + plan_.scratch.keys + row * key_row_;
    if (layout_ == KeyLayout::shifted) {
      pack_transposed(key, keys);
      return;
    }
    for (ptrdiff_t i = 0; i < count; ++i) {
      copy_row(D(), key + tokens_[i] * plan_.key.token[2], static_cast<size_t>(plan_.head_dim),
               static_cast<size_t>(plan_.key_pitch), keys + i * plan_.key_pitch);
    }
  }

  bool reads_in_place() const { return plan_.values_in_place && layout_ == KeyLayout::shifted; }

  void copy_values(const Element* from, ptrdiff_t begin, ptrdiff_t end, T* to) {
    for (ptrdiff_t i = begin; i < end; ++i) {
      copy_row(D(), tokens_[i] < 0 ? zeros_ : from + tokens_[i] * plan_.value.token[2],
               static_cast<size_t>(plan_.head_dim_value), static_cast<size_t>(plan_.value_pitch),
               to + i * plan_.value_pitch);
    }
  }

  void pack_transposed(const Element* key, T* keys) {
    const ptrdiff_t step = lane_axis().step, count = ranges_[2].size();
    std::array<const Element*, kMaxLanes> rows;
    for (ptrdiff_t run = 0; run < step; ++run) {
      for (ptrdiff_t column = 0; column * step + run < count; column += kMaxLanes) {
        for (ptrdiff_t lane = 0; lane < kMaxLanes; ++lane) {
          const ptrdiff_t i = (column + lane) * step + run;
          rows[static_cast<size_t>(lane)] =
              i < count && tokens_[i] >= 0 ? key + tokens_[i] * plan_.key.token[2] : zeros_;
        }
        transpose_rows(D(), rows.data(), static_cast<size_t>(plan_.head_dim),
                       static_cast<size_t>(columns_ * step), T{1}, keys + run * columns_ + column);
      }
    }
  }

  void run_tile(int x, int z, int first_row, int num_rows) {
    Rows rows;
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
          window_keys(x, key_z, key_y, j, std::min(plan_.max_slots, num_keys - j), &rows, num_rows,
                      first, last);
        }
      }
    }
    for (int64_t j = 0; j < plan_.additional_tokens; j += plan_.max_slots) {
      const auto count =
          static_cast<int>(std::min<int64_t>(plan_.max_slots, plan_.additional_tokens - j));
      const T* keys = scratch_ + plan_.scratch.additional_keys + j * plan_.key_pitch;
      const T* values = scratch_ + plan_.scratch.additional_values + j * plan_.value_pitch;
      add_keys<KeyLayout::shared>(keys,
                                  {.values = values,
                                   .pitch = plan_.value_pitch,
                                   .slot = 0,
                                   .count = count,
                                   .first_key = 0,
                                   .is_shared = true,
                                   .is_window = false},
                                  &rows, num_rows, 0, num_rows);
    }
    for (int r = 0; r < num_rows; ++r) flush(&rows[static_cast<size_t>(r)], /*is_last=*/true);
  }

  void set_up_row(int x, int z, int index, int r, Row* row) {
    const AxisGroup& axis = lane_axis();
    const AxisGroup& middle = *axes_[1];
    const int head = index % plan_.head_group;
    const int phase = index / plan_.head_group % axis.phases;
    const int k = box_.begin[1] + index / rows_of_query();
    row->phase = phase;
    row->state = empty_softmax(D());
    row->key_begin = middle.begin(middle.position(k));
    row->key_end = middle.end(middle.position(k));
    row->lanes = std::min(kMaxLanes, box_.end[2] - x);
    while (row->lanes > 0 && axis.position(x + row->lanes - 1) + phase >= axis.query_extent) {
      --row->lanes;
    }
    const Element* query =
        query_ + head * plan_.query.head +
        token_offset(plan_.query, axes_[0]->query_token(z, 0), middle.query_token(k, 0)) +
        axis.query_token(x, row->lanes > 0 ? phase : 0) * plan_.query.token[2];
    const auto offset = [&](const Strides& strides) {
      return head * strides.head +
             token_offset(strides, axes_[0]->output_token(z, 0), middle.output_token(k, 0)) +
             axis.output_token(x, phase) * strides.token[2];
    };
    row->output = output_ + offset(plan_.output);
    row->lse = lse_ + offset(plan_.lse);
    if (axis.window.is_causal) {
      for (int lane = 0; lane < kMaxLanes; ++lane) {
        row->views[static_cast<size_t>(lane)] = causal_view(axis.position(x + lane) + phase);
      }
    }
    row->is_masked = axis.window.is_causal &&
                     (layout_ == KeyLayout::shared || axis.phases > 1 || row->views[0].begin > 0);
    row->weights = scratch_ + plan_.scratch.weights + ptrdiff_t{r} * kMaxLanes * plan_.max_slots;
    row->sums = scratch_ + plan_.scratch.sums + ptrdiff_t{r} * kMaxLanes * plan_.value_pitch;

    const ptrdiff_t lane_stride = plan_.query.token[2] * axis.token_step * axis.step;
    std::array<const Element*, kMaxLanes> queries;
    for (int lane = 0; lane < kMaxLanes; ++lane) {
      queries[static_cast<size_t>(lane)] =
          query + std::min(lane, std::max(row->lanes - 1, 0)) * lane_stride;
    }
    // Logits are powers of two's exponents from here on.
    constexpr double kLog2E = 1.44269504088896340736;
    transpose_rows(D(), queries.data(), static_cast<size_t>(plan_.head_dim), kMaxLanes,
                   static_cast<T>(plan_.scale * kLog2E), tile_queries(r));
  }

  T* tile_queries(int r) const {
    return scratch_ + plan_.scratch.queries + ptrdiff_t{r} * kMaxLanes * plan_.head_dim;
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
  int visible_keys(const Rows& rows, int num_rows) const {
    const NaAxis& window = lane_axis().window;
    if (layout_ == KeyLayout::shifted || !window.is_causal) return window.kernel_size;
    int keys = 0;
    for (int r = 0; r < num_rows; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      keys = std::max(keys, row.views[static_cast<size_t>(std::max(row.lanes - 1, 0))].visible);
    }
    return keys;
  }

  // Value rows of the window of x's first lane: packed, or where they lie in the tensor.
  struct ValueRows {
    const T* first;
    ptrdiff_t pitch;
  };
  ValueRows window_values(int x, int key_z, int key_y) const {
    const AxisGroup& axis = lane_axis();
    if constexpr (std::is_same_v<T, Element>) {
      if (reads_in_place() && is_inside(x)) {
        const int begin = borderless_begin(axis.window, axis.position(x));
        const T* values = value_ + token_offset(plan_.value, axes_[0]->to_token(key_z),
                                                axes_[1]->to_token(key_y));
        return {values + axis.to_token(begin) * plan_.value.token[2],
                plan_.value.token[2] * axis.token_step};
      }
    }
    const ptrdiff_t first =
        layout_ == KeyLayout::shifted ? ptrdiff_t{x - box_.begin[2]} * axis.step : ptrdiff_t{0};
    const ptrdiff_t row = packed_row(key_z, key_y) * ranges_[2].size() + first;
    return {scratch_ + plan_.scratch.values + row * plan_.value_pitch, plan_.value_pitch};
  }

  // Keys [j, j + count) of the window in one row of keys, for rows [first, last) of the tile.
  void window_keys(int x, int key_z, int key_y, int j, int count, Rows* rows, int num_rows,
                   int first, int last) {
    const T* keys = scratch_ + plan_.scratch.keys + packed_row(key_z, key_y) * key_row_;
    const ValueRows values = window_values(x, key_z, key_y);
    const KeyRun<T> run = {.values = values.first + j * values.pitch,
                           .pitch = values.pitch,
                           .slot = 0,
                           .count = count,
                           .first_key = j,
                           .is_shared = layout_ == KeyLayout::shared,
                           .is_window = true};
    if (layout_ == KeyLayout::shifted) {
      add_keys<KeyLayout::shifted>(keys + (x - box_.begin[2]), run, rows, num_rows, first, last);
    } else {
      add_keys<KeyLayout::shared>(keys + ptrdiff_t{j} * plan_.key_pitch, run, rows, num_rows, first,
                                  last);
    }
  }

  // Logits of a run of keys for rows [first, last), flushing all rows before if one has no room.
  template <KeyLayout kLayout>
  void add_keys(const T* keys, const KeyRun<T>& run, Rows* rows, int num_rows, int first,
                int last) {
    for (int r = first; r < last; ++r) {
      if ((*rows)[static_cast<size_t>(r)].slots + run.count <= plan_.max_slots) continue;
      for (int all = 0; all < num_rows; ++all) {
        flush(&(*rows)[static_cast<size_t>(all)], /*is_last=*/false);
      }
      break;
    }
    for (int r = first, count; r < last; r += count) {
      count = last - r == 4 ? 2 : std::min(kMaxRows, last - r);
      row_logits<kLayout>(keys, run, *rows, r, count);
    }
    for (int r = first; r < last; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      KeyRun<T>& added = row.runs[static_cast<size_t>(row.num_runs++)];
      added = run;
      added.slot = row.slots;
      row.slots += run.count;
    }
  }

  template <KeyLayout kLayout>
  void row_logits(const T* keys, const KeyRun<T>& run, const Rows& rows, int first, int count) {
    const ptrdiff_t key_step =
        kLayout == KeyLayout::shifted ? ptrdiff_t{columns_} * lane_axis().step : 1;
    for (int t = 0, take; t < run.count; t += take) {
      take = LogitsTable<kLayout, D>::take(count, run.count - t);
      const T* key[kMaxKeysOneRow];
      for (int i = 0; i < take; ++i) {
        key[i] = kLayout == KeyLayout::shifted ? keys + key_offsets_[run.first_key + t + i]
                                               : keys + ptrdiff_t{t + i} * plan_.key_pitch;
      }
      T* weights[kMaxRows];
      for (int r = 0; r < count; ++r) {
        const Row& row = rows[static_cast<size_t>(first + r)];
        weights[r] = row.weights + ptrdiff_t{row.slots + t} * kMaxLanes;
      }
      LogitsTable<kLayout, D>::get(count, take)(D(), plan_.head_dim, tile_queries(first),
                                                ptrdiff_t{kMaxLanes} * plan_.head_dim, key,
                                                key_step, weights);
    }
  }

  // Softmax and values of the keys that a row holds; the last time also output and lse.
  void flush(Row* row, bool is_last) {
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
      if (plan_.has_lse) write_lse(*row);
    }
    weigh_lanes(row, {is_last, shrink, inverse});
    row->has_sums = true;
    row->slots = row->num_runs = 0;
  }

  struct Flush {
    bool is_last;
    const T *shrink, *inverse;  // of each lane
  };

  void weigh_lanes(Row* row, const Flush& how) {
    const AxisGroup& axis = lane_axis();
    const bool has_views = row->is_masked && (layout_ == KeyLayout::shared || axis.phases > 1);
    const ValueArguments<T> arguments = {row->runs.data(), row->num_runs, row->weights, axis.step,
                                         has_views ? row->views.data() : nullptr};
    bool is_stairs = layout_ == KeyLayout::shifted && axis.step == 1;
    bool is_level = true;
    for (int i = 0; i < row->num_runs; ++i) {
      const KeyRun<T>& run = row->runs[static_cast<size_t>(i)];
      is_stairs = is_stairs && (run.is_shared || run.count >= 3);
      is_level = is_level && run.is_shared;
    }
    int lane = 0;
    if (is_level) {
      for (; lane + 4 <= row->lanes; lane += 4) weigh<Quad::level>(row, arguments, how, lane);
    } else if (is_stairs) {
      for (; lane + 4 <= row->lanes; lane += 4) weigh<Quad::stairs>(row, arguments, how, lane);
    }
    for (; lane < row->lanes; ++lane) weigh<Quad::single>(row, arguments, how, lane);
  }

  template <Quad kQuad>
  void weigh(Row* row, const ValueArguments<T>& arguments, const Flush& how, int lane) {
    ptrdiff_t column = 0;
    for (; column + 2 * kMaxLanes <= plan_.value_pitch; column += 2 * kMaxLanes) {
      weigh_columns<kQuad, 2>(row, arguments, how, lane, column);
    }
    if (column < plan_.value_pitch) weigh_columns<kQuad, 1>(row, arguments, how, lane, column);
  }

  // Values of the lanes from `lane` on, kVectors vectors of them from `column` on.
  template <Quad kQuad, int kVectors>
  HWY_NOINLINE void weigh_columns(Row* row, const ValueArguments<T>& arguments, const Flush& how,
                                  int lane, ptrdiff_t column) {
    constexpr int kLanes = kQuad == Quad::single ? 1 : 4;
    const D d;
    ValueSums<kVectors, D> sums;
    T* kept = row->sums + lane * plan_.value_pitch + column;
    if (row->has_sums) {
      unroll<kLanes>([&](auto q) HWY_ATTR {
        const auto factor = hn::Set(d, how.shrink[lane + ptrdiff_t{q}]);
        unroll<kVectors>([&](auto v) HWY_ATTR {
          sums.sums[q * kVectors + v] = hn::Mul(
              factor, hn::LoadU(d, kept + ptrdiff_t{q} * plan_.value_pitch + v * kMaxLanes));
        });
      });
    }
    if constexpr (kQuad == Quad::single) {
      add_single(d, arguments, lane, column, &sums);
      unroll<kVectors>([&](auto v) HWY_ATTR {
        sums.sums[v] = hn::Add(hn::Add(sums.sums[v], sums.sums[kVectors + v]),
                               hn::Add(sums.sums[2 * kVectors + v], sums.sums[3 * kVectors + v]));
      });
    } else if constexpr (kQuad == Quad::level) {
      add_level(d, arguments, lane, column, &sums);
    } else {
      // Runs of the window come first, additional tokens after them.
      ValueArguments<T> window = arguments, additional = arguments;
      while (arguments.runs[window.num_runs - 1].is_shared) --window.num_runs;
      add_stairs(d, window, lane, column, &sums);
      if (window.num_runs < arguments.num_runs) {
        additional.runs += window.num_runs;
        additional.num_runs -= window.num_runs;
        HWY_ALIGN T buffer[4 * kVectors * kMaxLanes];
        sums.store(buffer);
        add_level_apart<kVectors>(d, additional, lane, column, buffer);
        sums.load(buffer);
      }
    }
    if (!how.is_last) {
      unroll<kLanes>([&](auto q) HWY_ATTR {
        unroll<kVectors>([&](auto v) HWY_ATTR {
          hn::StoreU(sums.sums[q * kVectors + v], d,
                     kept + ptrdiff_t{q} * plan_.value_pitch + v * kMaxLanes);
        });
      });
      return;
    }
    const AxisGroup& axis = lane_axis();
    const ptrdiff_t lane_stride = axis.output_step * plan_.output.token[2];
    Element* output = row->output + lane * lane_stride + column;
    const ptrdiff_t left = plan_.head_dim_value - column;
    unroll<kLanes>([&](auto q) HWY_ATTR {
      const auto factor = hn::Set(d, how.inverse[lane + ptrdiff_t{q}]);
      unroll<kVectors>([&](auto v) HWY_ATTR {
        constexpr ptrdiff_t at = ptrdiff_t{v} * kMaxLanes;
        if (at < left) {
          store_some(d, hn::Mul(factor, sums.sums[q * kVectors + v]),
                     static_cast<size_t>(left - at), output + ptrdiff_t{q} * lane_stride + at);
        }
      });
    });
  }

  void write_lse(const Row& row) {
    const D d;
    HWY_ALIGN T lse[kMaxLanes];
    hn::Store(log_sum_exp(d, row.state), d, lse);
    const ptrdiff_t lane_stride = lane_axis().output_step * plan_.lse.token[2];
    for (int lane = 0; lane < row.lanes; ++lane) row.lse[lane * lane_stride] = lse[lane];
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
  int64_t* tokens_ = nullptr;
  int64_t* key_offsets_ = nullptr;
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
