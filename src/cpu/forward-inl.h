// SPDX-License-Identifier: MIT
// Walks one unit of the forward pass: pack, then tiles of query rows x one vector of queries.
// Part of each forward_*.cc; compiled once for every instruction set.
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

#include "cpu/bias-inl.h"
#include "cpu/direct-inl.h"
#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "cpu/values-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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
    bias_ = static_cast<const T*>(pointers.bias) + head * plan.bias.head;
    output_ = at<Element>(pointers.output, plan.output, batch, head);
    lse_ = at<LseType>(pointers.lse, plan.lse, batch, head);
    if (layout_ == KeyLayout::shifted) {
      key_runs_ = key_runs(lane_axis(), ranges_[2]);
      key_row_ = ptrdiff_t{key_runs_.pitch} * plan.head_dim;
    } else {
      key_row_ = ptrdiff_t{ranges_[2].size()} * plan.key_pitch;
    }
  }

  void run() {
    pack();
    const int tile_rows = twins() == 1 ? kMaxRows : kTileVectors / twins();
    for (int x = box_.begin[2]; x < box_.end[2]; x += kMaxLanes * twins()) {
      for (int z = box_.begin[0]; z < box_.end[0]; ++z) {
        const int rows = (box_.end[1] - box_.begin[1]) * rows_of_query();
        Place place = {x, z, box_.begin[1], 0, 0};
        for (int row = 0; row < rows; row += tile_rows) {
          run_tile(std::min(tile_rows, rows - row), &place);
        }
      }
    }
  }

 private:
  static constexpr int kMaxLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr int kMaxRuns = kWeightBytes / (kMaxLanes * static_cast<int>(sizeof(T))) + 1;

  static constexpr int kMaxQueries = kMaxLanes * kMaxTwins;
  // Queries whose values are summed up together: 2 vectors of sums each hide the latency of the
  // multiply-add, if there are registers for them.
  static constexpr int kManyQueries = HWY_TARGET == HWY_AVX3 ? 8 : 4;
  static constexpr int kMaxRows = 6;

  // Where a query row stands: its first query, outer positions, phase and head.
  struct Place {
    int x, z, k, phase, head;
  };
  // The row after it.
  void advance(Place* place) const {
    if (++place->head < plan_.head_group) return;
    place->head = 0;
    if (++place->phase < lane_axis().phases) return;
    place->phase = 0;
    ++place->k;
  }

  // One query row of a tile: up to lanes * twins queries at one outer position, phase and head.
  struct Row {
    int head = 0, num_queries = 0;       // vectors are filled up with the last query
    int position_z = 0, position_y = 0;  // of the queries
    int key_begin = 0, key_end = 0;      // of the middle axis
    Element* output = nullptr;           // of the first query
    LseType* lse = nullptr;
    bool is_masked = false;
    std::array<QueryView, kMaxQueries> views;
    BiasEntries<D> bias;
    T* weights = nullptr;
    T* sums = nullptr;
    bool has_sums = false;  // of keys that were flushed before
    int slots = 0, num_runs = 0, num_window_runs = 0;
    std::array<KeyRun<T>, kMaxRuns> runs;
    std::array<SoftmaxState<D>, kMaxTwins> states;
  };

  using Rows = std::array<Row, kMaxRows>;

  template <typename U>
  static U* at(const void* data, const Strides& strides, int64_t batch, int64_t head) {
    return static_cast<U*>(const_cast<void*>(data)) + batch * strides.batch + head * strides.head;
  }

  const AxisGroup& lane_axis() const { return *axes_[2]; }
  int rows_of_query() const { return lane_axis().phases * plan_.head_group; }
  int twins() const { return lane_axis().twins; }
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
    find_keys();
    if (plan_.bias.given) {
      pack_bias(plan_.bias, plan_.head_group, static_cast<T>(kLog2E), bias_,
                scratch_ + plan_.scratch.bias);
    }
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

  // The row of a tensor that stands at position p of the packed rows; zeros where none does.
  // `row` is that of position 0.
  const Element* row_at(const Element* row, ptrdiff_t position_stride, int p) const {
    const int key = packed_key(lane_axis(), p);
    return key < 0 ? zeros_ : row + key * position_stride;
  }
  ptrdiff_t position_stride(const Strides& strides) const {
    return strides.token[2] * lane_axis().token_step;
  }

  // Where each key of a window lies in a packed row.
  void find_keys() {
    if (layout_ == KeyLayout::shared) return;
    key_offsets_ = reinterpret_cast<int64_t*>(scratch_ + plan_.scratch.key_offsets);
    const int num_keys = lane_axis().window.kernel_size + twins() - 1;
    for (int j = 0, column = 0; j < num_keys; ++column) {
      for (int run = 0; run < key_runs_.num_runs && j < num_keys; ++run, ++j) {
        key_offsets_[j] = int64_t{run} * key_runs_.columns + column;
      }
    }
  }

  // True if all windows of the row of queries at x lie within the axis as they are.
  bool is_inside(int x) const {
    const AxisGroup& axis = lane_axis();
    const int begin = borderless_begin(axis.window, axis.position(x));
    const int last = begin + axis.step * (kMaxLanes * axis.twins - 1);
    return begin >= 0 && last + axis.window.kernel_size <= axis.window.extent;
  }

  void pack_row(int z, int y) {
    const int64_t token_z = axes_[0]->to_token(z), token_y = axes_[1]->to_token(y);
    const Element* key =
        key_ + token_offset(plan_.key, token_z, token_y) + lane_axis().token * plan_.key.token[2];
    const Element* value = value_ + token_offset(plan_.value, token_z, token_y) +
                           lane_axis().token * plan_.value.token[2];
    const ptrdiff_t row = packed_row(z, y);
    const int count = ranges_[2].size();
    T* values = scratch_ + plan_.scratch.values + row * count * plan_.value_pitch;
    if (reads_in_place()) {
      const AxisGroup& axis = lane_axis();
      const int queries = kMaxLanes * axis.twins;
      for (int x = box_.begin[2]; x < box_.end[2]; x += queries) {
        if (is_inside(x)) continue;
        const int first = (x - box_.begin[2]) * axis.step;
        copy_values(value, first, first + axis.step * (queries - 1) + axis.window.kernel_size,
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
    const ptrdiff_t stride = position_stride(plan_.key);
    for (int i = 0; i < count; ++i) {
      copy_row(D(), key + i * stride, static_cast<size_t>(plan_.head_dim),
               static_cast<size_t>(plan_.key_pitch), keys + ptrdiff_t{i} * plan_.key_pitch);
    }
  }

  bool reads_in_place() const { return plan_.values_in_place && layout_ == KeyLayout::shifted; }

  // Rows [begin, end) of a packed row of values.
  void copy_values(const Element* value, int begin, int end, T* to) {
    const ptrdiff_t stride = position_stride(plan_.value);
    for (int i = begin; i < end; ++i) {
      copy_row(D(), row_at(value, stride, ranges_[2].begin + i),
               static_cast<size_t>(plan_.head_dim_value), static_cast<size_t>(plan_.value_pitch),
               to + ptrdiff_t{i} * plan_.value_pitch);
    }
  }

  void pack_transposed(const Element* key, T* keys) {
    const int runs = key_runs_.num_runs, count = ranges_[2].size();
    const hn::CappedTag<T, 4> few;
    constexpr int kFew = static_cast<int>(hn::MaxLanes(few));
    for (int run = 0; run < runs; ++run) {
      const int columns = (count - run + runs - 1) / runs;
      int column = 0;
      for (; columns - column > kMaxLanes / 2; column += kMaxLanes) {
        // The last vector may overlap the one before: it must not reach into the next run.
        pack_columns(D(), key, run, std::min(column, key_runs_.columns - kMaxLanes), keys);
      }
      for (; column < columns; column += kFew) pack_columns(few, key, run, column, keys);
    }
  }

  template <class Tag>
  void pack_columns(Tag tag, const Element* key, int run, int column, T* keys) {
    constexpr int kColumns = static_cast<int>(hn::MaxLanes(tag));
    const ptrdiff_t stride = position_stride(plan_.key);
    const int runs = key_runs_.num_runs;
    const int first = ranges_[2].begin + column * runs + run, last = first + (kColumns - 1) * runs;
    const auto transpose = [&](const auto& rows) {
      transpose_rows(tag, rows, static_cast<size_t>(plan_.head_dim),
                     static_cast<size_t>(key_runs_.pitch), T{1},
                     keys + ptrdiff_t{run} * key_runs_.columns + column);
    };
    if (first >= 0 && last < lane_axis().window.extent) {
      transpose(RegularRows<Element>(key + first * stride, runs * stride));
    } else {
      std::array<const Element*, kColumns> rows;
      for (int lane = 0; lane < kColumns; ++lane) {
        rows[static_cast<size_t>(lane)] = row_at(key, stride, first + lane * runs);
      }
      transpose(ScatteredRows<Element>{rows.data()});
    }
  }

  // The next num_rows rows from *place on.
  void run_tile(int num_rows, Place* place) {
    const int x = place->x, z = place->z;
    Rows rows;
    for (int r = 0; r < num_rows; ++r, advance(place)) {
      set_up_row(*place, r, &rows[static_cast<size_t>(r)]);
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

  void set_up_row(const Place& place, int r, Row* row) {
    const AxisGroup& axis = lane_axis();
    const AxisGroup& middle = *axes_[1];
    const int x = place.x, z = place.z, k = place.k, phase = place.phase, head = place.head;
    row->head = head;
    if (plan_.bias.given) row->bias = {axis, x, phase};
    row->position_z = axes_[0]->position(z);
    row->position_y = middle.position(k);
    row->key_begin = middle.begin(middle.position(k));
    row->key_end = middle.end(middle.position(k));
    row->num_queries = std::min(kMaxLanes * twins(), box_.end[2] - x);
    while (row->num_queries > 0 &&
           axis.position(x + row->num_queries - 1) + phase >= axis.query_extent) {
      --row->num_queries;
    }
    const Element* query =
        query_ + head * plan_.query.head +
        token_offset(plan_.query, axes_[0]->query_token(z, 0), middle.query_token(k, 0)) +
        axis.query_token(x, row->num_queries > 0 ? phase : 0) * plan_.query.token[2];
    const auto offset = [&](const Strides& strides) {
      return head * strides.head +
             token_offset(strides, axes_[0]->output_token(z, 0), middle.output_token(k, 0)) +
             axis.output_token(x, phase) * strides.token[2];
    };
    row->output = output_ + offset(plan_.output);
    row->lse = lse_ + offset(plan_.lse);
    if (axis.window.is_causal) {
      for (int i = 0; i < kMaxLanes * twins(); ++i) {
        row->views[static_cast<size_t>(i)] = causal_view(axis.position(x + i) + phase);
      }
    }
    row->is_masked = axis.window.is_causal &&
                     (layout_ == KeyLayout::shared || axis.phases > 1 || row->views[0].begin > 0);
    const ptrdiff_t vector = ptrdiff_t{r} * twins();
    row->weights = scratch_ + plan_.scratch.weights + vector * plan_.weights_pitch;
    row->sums = scratch_ + plan_.scratch.sums + vector * kMaxLanes * plan_.value_pitch;

    const ptrdiff_t query_stride = plan_.query.token[2] * axis.token_step * axis.step;
    const int last = std::max(row->num_queries - 1, 0);
    for (int t = 0; t < twins(); ++t) {
      row->states[static_cast<size_t>(t)] = empty_softmax(D());
      const auto transpose = [&](const auto& queries) {
        // Logits are powers of two's exponents from here on.
        transpose_rows(D(), queries, static_cast<size_t>(plan_.head_dim), kMaxLanes,
                       static_cast<T>(plan_.scale * kLog2E), tile_queries(r, t));
      };
      if (row->num_queries == kMaxLanes * twins()) {
        transpose(RegularRows<Element>(query + t * query_stride, twins() * query_stride));
      } else {
        std::array<const Element*, kMaxLanes> queries;
        for (int lane = 0; lane < kMaxLanes; ++lane) {
          queries[static_cast<size_t>(lane)] =
              query + std::min(lane * twins() + t, last) * query_stride;
        }
        transpose(ScatteredRows<Element>{queries.data()});
      }
    }
  }

  T* tile_queries(int r, int twin) const {
    return scratch_ + plan_.scratch.queries + (ptrdiff_t{r} * twins() + twin) * plan_.queries_pitch;
  }

  // What a causal query at position p sees. Stride 1 with the shifted layout: all from the border
  // on.
  QueryView causal_view(int p) const {
    const NaAxis& window = lane_axis().window;
    if (layout_ == KeyLayout::shared) {
      return {0, std::min(p + 1, window.extent), window.extent};
    }
    const int begin = borderless_begin(window, p);
    return {std::max(0, -begin), p - begin + 1, window.extent - begin};
  }

  // Keys along the innermost axis that some query of the tile sees.
  int visible_keys(const Rows& rows, int num_rows) const {
    const NaAxis& window = lane_axis().window;
    if (layout_ == KeyLayout::shifted || !window.is_causal) return window.kernel_size;
    int keys = 0;
    for (int r = 0; r < num_rows; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      keys =
          std::max(keys, row.views[static_cast<size_t>(std::max(row.num_queries - 1, 0))].visible);
    }
    return keys;
  }

  // Value rows of the window of the query at x: packed, or where they lie in the tensor.
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
      add_keys<KeyLayout::shifted>(keys + ((x - box_.begin[2]) / twins()), run, rows, num_rows,
                                   first, last);
    } else {
      add_keys<KeyLayout::shared>(keys + ptrdiff_t{j} * plan_.key_pitch, run, rows, num_rows, first,
                                  last);
    }
    if (!plan_.bias.given) return;  // else to the logits of the run that was added last
    for (int r = first; r < last; ++r) {
      const Row& row = (*rows)[static_cast<size_t>(r)];
      const T* table = scratch_ + plan_.scratch.bias + ptrdiff_t{row.head} * plan_.bias.size() +
                       bias_entry(plan_.bias, key_z - row.position_z, key_y - row.position_y);
      for (int t = 0; t < twins(); ++t) {
        row.bias.add(
            table, j, count, t,
            row.weights + t * plan_.weights_pitch + ptrdiff_t{row.slots - count} * kMaxLanes);
      }
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
    for (int r = first, taken; r < last; r += taken) {
      taken = twins() > 1 ? 1 : LogitsTable<kLayout, D>::take_rows(last - r);
      row_logits<kLayout>(keys, run, *rows, r, taken);
    }
    const auto [values, pitch, slot, count, first_key, is_shared, is_window] = run;
    for (int r = first; r < last; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      // Field by field: copying what was just written in parts as a whole would wait for it.
      row.runs[static_cast<size_t>(row.num_runs++)] = {.values = values,
                                                       .pitch = pitch,
                                                       .slot = row.slots,
                                                       .count = count,
                                                       .first_key = first_key,
                                                       .is_shared = is_shared,
                                                       .is_window = is_window};
      row.slots += count;
      if (is_window) row.num_window_runs = row.num_runs;
    }
  }

  template <KeyLayout kLayout>
  void row_logits(const T* keys, const KeyRun<T>& run, const Rows& rows, int first, int count) {
    constexpr bool kIsShifted = kLayout == KeyLayout::shifted;
    const ptrdiff_t key_step = kIsShifted ? key_runs_.pitch : 1;
    const int vectors = count * twins();
    for (int t = 0, take; t < run.count; t += take) {
      take = LogitsTable<kLayout, D>::take(vectors, run.count - t);
      const T* key[LogitsTable<kLayout, D>::kMaxColumns];
      for (int i = 0; i < (kIsShifted ? take + twins() - 1 : take); ++i) {
        key[i] = kIsShifted ? keys + key_offsets_[run.first_key + t + i]
                            : keys + ptrdiff_t{t + i} * plan_.key_pitch;
      }
      T* weights[4];
      for (int v = 0; v < vectors; ++v) {
        // Of a row with twins, or of a row each.
        const Row& row = rows[static_cast<size_t>(twins() > 1 ? first : first + v)];
        weights[v] = row.weights + (twins() > 1 ? v * ptrdiff_t{plan_.weights_pitch} : 0) +
                     ptrdiff_t{row.slots + t} * kMaxLanes;
      }
      const auto logits = twins() > 1 ? LogitsTable<kLayout, D>::of_twins(take)
                                      : LogitsTable<kLayout, D>::of_rows(count, take);
      logits(plan_.head_dim, tile_queries(first, 0), plan_.queries_pitch, key, key_step, weights);
    }
  }

  // Softmax and values of the keys that a row holds; the last time also output and lse.
  void flush(Row* row, bool is_last) {
    if (row->slots == 0 && !is_last) return;
    const D d;
    for (int t = 0; t < twins(); ++t) {
      T* weights = row->weights + t * plan_.weights_pitch;
      if (row->is_masked) {
        for (int i = 0; i < row->num_runs; ++i) {
          const KeyRun<T>& run = row->runs[static_cast<size_t>(i)];
          if (run.is_window) {
            hide(d, run, row->views.data() + t, static_cast<size_t>(twins()), weights);
          }
        }
      }
      SoftmaxState<D>& state = row->states[static_cast<size_t>(t)];
      const auto shrink = softmax(d, static_cast<size_t>(row->slots), weights, &state);
      hn::Store(shrink, d, weights + shrink_offset<D>());
      if (is_last) {
        const auto inverse = hn::IfThenZeroElse(hn::Eq(state.sum, hn::Zero(d)),
                                                hn::Div(hn::Set(d, T{1}), state.sum));
        hn::Store(inverse, d, weights + inverse_offset<D>());
        if (plan_.has_lse) write_lse(*row, t);
      }
    }
    weigh_queries(*row, is_last);
    row->has_sums = true;
    row->slots = row->num_runs = row->num_window_runs = 0;
  }

  void weigh_queries(const Row& row, bool is_last) {
    if (twins() == 1) {
      weigh_queries<1>(row, is_last);
    } else {
      weigh_queries<kMaxTwins>(row, is_last);
    }
  }

  template <int kTwins>
  void weigh_queries(const Row& row, bool is_last) {
    const AxisGroup& axis = lane_axis();
    const bool has_views = row.is_masked && (layout_ == KeyLayout::shared || axis.phases > 1);
    const ValueArguments<T> arguments = {
        row.runs.data(), row.num_runs, row.num_window_runs,
        row.weights,     axis.step,    has_views ? row.views.data() : nullptr};
    bool is_level = true;
    int shortest = layout_ == KeyLayout::shifted && axis.step == 1 ? kManyQueries : 0;
    for (int i = 0; i < row.num_runs; ++i) {
      const KeyRun<T>& run = row.runs[static_cast<size_t>(i)];
      if (run.is_shared) continue;
      is_level = false;
      shortest = std::min(shortest, run.count);
    }
    const int begin = 0, end = row.num_queries;
    const int many = end / kManyQueries * kManyQueries, quads = end / 4 * 4;
    int done = 0;
    if (is_level) {
      weigh<Sharing::level, kTwins, kManyQueries>(row, arguments, is_last, begin, many);
      weigh<Sharing::level, kTwins, 4>(row, arguments, is_last, many, quads);
      done = quads;
    } else if (shortest >= 3) {
      if (shortest >= kManyQueries - 1) {
        weigh<Sharing::stairs, kTwins, kManyQueries>(row, arguments, is_last, begin, many);
        done = many;
      }
      weigh<Sharing::stairs, kTwins, 4>(row, arguments, is_last, done, quads);
      done = quads;
    }
    weigh<Sharing::none, kTwins, 1>(row, arguments, is_last, done, end);
  }

  // Queries [begin, end) of a row, kQueries at a time.
  template <Sharing kSharing, int kTwins, int kQueries>
  void weigh(const Row& row, const ValueArguments<T>& arguments, bool is_last, int begin, int end) {
    if (begin >= end) return;
    const auto target = [&](ptrdiff_t column) {
      return SumsTarget<T, Element>{row.sums + column,
                                    plan_.value_pitch,
                                    row.has_sums,
                                    is_last,
                                    row.output + column,
                                    lane_axis().output_step * plan_.output.token[2],
                                    plan_.head_dim_value - column};
    };
    ptrdiff_t column = 0;
    for (; column + 2 * kMaxLanes <= plan_.value_pitch; column += 2 * kMaxLanes) {
      if (is_last && !row.has_sums && column + 2 * kMaxLanes <= plan_.head_dim_value) {
        weigh_values<kSharing, kTwins, kQueries, 2, true>(D(), arguments, begin, end, column,
                                                          target(column));
      } else {
        weigh_values<kSharing, kTwins, kQueries, 2, false>(D(), arguments, begin, end, column,
                                                           target(column));
      }
    }
    if (column < plan_.value_pitch) {
      weigh_values<kSharing, kTwins, kQueries, 1, false>(D(), arguments, begin, end, column,
                                                         target(column));
    }
  }

  void write_lse(const Row& row, int twin) {
    const D d;
    HWY_ALIGN T lse[kMaxLanes];
    hn::Store(log_sum_exp(d, row.states[static_cast<size_t>(twin)]), d, lse);
    const ptrdiff_t query_stride = lane_axis().output_step * plan_.lse.token[2];
    for (int lane = 0, i = twin; i < row.num_queries; ++lane, i += twins()) {
      row.lse[i * query_stride] = lse[lane];
    }
  }

  const ForwardPlan& plan_;
  T* scratch_;
  Box box_;
  std::array<const AxisGroup*, kRank> axes_;
  std::array<KeyRange, kRank> ranges_;
  KeyLayout layout_;
  KeyRuns key_runs_ = {};  // of the shifted layout
  ptrdiff_t key_row_ = 0;  // elements of one packed row of keys
  const Element *query_, *key_, *value_, *additional_key_, *additional_value_;
  const T* bias_;
  const Element* zeros_ = nullptr;
  int64_t* key_offsets_ = nullptr;
  Element* output_;
  LseType* lse_;
};

// Where vectors are longer, additions across their lanes cost more than what packing costs.
template <typename Element>
inline constexpr bool kHasDirectForm =
    sizeof(typename ComputeType<Element>::type) == 4 && HWY_TARGET != HWY_AVX3;

template <typename Element>
void run_forward_unit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit,
                      void* scratch) {
  if constexpr (kHasDirectForm<Element>) {
    if (plan.direct.is_used) return DirectUnit<Element>(plan, pointers, unit, scratch).run();
  }
  ForwardUnit<Element>(plan, pointers, unit, scratch).run();
}

template <typename Element>
ForwardKernel make_forward_kernel() {
  using T = typename ComputeType<Element>::type;
  const int lanes = static_cast<int>(hn::Lanes(hn::ScalableTag<T>()));
  return {&run_forward_unit<Element>, lanes, kHasDirectForm<Element> ? lanes : 0, sizeof(T),
          hwy::TargetName(HWY_TARGET)};
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_FORWARD_INL_H_
