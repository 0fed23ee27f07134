// SPDX-License-Identifier: MIT
// The tiles of one unit of the forward pass: query rows x one vector of queries. Keys are packed.
// Part of each forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_FORWARD_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_FORWARD_TILES_INL_H_
#undef VECINA_CPU_FORWARD_TILES_INL_H_
#else
#define VECINA_CPU_FORWARD_TILES_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/bias-inl.h"
#include "cpu/forward.h"
#include "cpu/lane_unit-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "cpu/values-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Q is the tag of a vector of queries. Values have whole vectors.
template <typename Element, class Q>
class ForwardTiles : public LaneUnit<Element, ForwardPlan, Q> {
  using Base = LaneUnit<Element, ForwardPlan, Q>;

 public:
  using typename Base::D, typename Base::LseType, typename Base::T;

  ForwardTiles(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit,
               void* scratch)
      : Base(plan, pointers, unit, scratch),
        key_row_(keys_.layout() == KeyLayout::shifted ? keys_.transposed_row(plan.key_words)
                                                      : ptrdiff_t{keys_.tokens()} * plan.key_pitch),
        output_(tensor_at<Element>(pointers.output, plan.output, batch_, head_)),
        streams_output_(kStreams<T, Element> && plan.streams_output &&
                        has_whole_vectors(output_, plan.output, kValueLanes)),
        lse_(tensor_at<LseType>(pointers.lse, plan.lse, batch_, head_)) {}
  // The same tiles, with other vectors of queries.
  template <class Other>
  explicit ForwardTiles(const ForwardTiles<Element, Other>& tiles)
      : Base(tiles),
        key_row_(tiles.key_row_),
        output_(tiles.output_),
        streams_output_(tiles.streams_output_),
        lse_(tiles.lse_) {}

  // The rows of queries of a band at x.
  void run_column(int x, const Box& band) {
    const int tile_rows = twins() == 1 ? kTileRows : kTileVectors / twins();
    const int rows = (band.end[1] - band.begin[1]) * rows_of_query();
    for (int z = band.begin[0]; z < band.end[0]; ++z) {
      Place place = {x, z, band.begin[1], 0, 0};
      for (int row = 0; row < rows; row += tile_rows) {
        run_tile(std::min(tile_rows, rows - row), &place);
      }
    }
  }

 protected:
  using Base::batch_, Base::box_, Base::head_, Base::head_index_, Base::key_, Base::keys_,
      Base::plan_, Base::query_, Base::scratch_, Base::value_;
  using Base::kLog2E, Base::kMaxLanes, Base::lane_axis;

  static constexpr bool kMayHavePairs = kHasPairs && std::is_same_v<Element, bfloat16>;

  int twins() const { return kHasTwins<D> ? lane_axis().twins : 1; }

  // True if all windows of the row of queries at x lie within the axis as they are.
  bool is_inside(int x) const {
    const AxisGroup& axis = lane_axis();
    const int begin = borderless_begin(axis.window, axis.position(x));
    const int last = begin + axis.step * (kMaxLanes * axis.twins - 1);
    return begin >= 0 && last + axis.window.kernel_size <= axis.window.extent;
  }

  // The packed row of values at the given outer positions.
  ptrdiff_t value_row(int z, int y) const {
    if (!plan_.has_value_pairs) return keys_.row(z, y);
    if (keys_.ring().axis == 1) return keys_.row(z, y) / 2;  // of an even number
    const ptrdiff_t pairs = (keys_.range(1).size() + 1) / 2;
    return (z - keys_.range(0).begin) % keys_.ring().rows * pairs + (y - keys_.range(1).begin) / 2;
  }

  bool reads_in_place() const {
    return plan_.values_in_place && keys_.layout() == KeyLayout::shifted;
  }

  bool reads_shared_values_in_place() const {
    return plan_.shared_values_in_place && keys_.layout() == KeyLayout::shared;
  }

  const ptrdiff_t key_row_;  // elements of one packed row of keys
  Element* const output_;
  const bool streams_output_;
  LseType* const lse_;

 private:
  template <typename, class>
  friend class ForwardTiles;
  using Base::causal_view, Base::num_queries, Base::output_offset, Base::output_stride,
      Base::query_offset, Base::query_stride, Base::to_next_unit, Base::visible_keys;

  using Values = hn::ScalableTag<T>;
  static constexpr int kValueLanes = static_cast<int>(hn::MaxLanes(Values()));
  static constexpr int kMaxRuns = kWeightBytes / (kValueLanes * static_cast<int>(sizeof(T))) + 1;

  static constexpr int kMaxQueries = kMaxLanes * kMaxTwins;
  // Queries whose values are summed up together: 2 vectors of sums each hide the latency of the
  // multiply-add, if there are registers for them.
  static constexpr int kManyQueries = HWY_TARGET == HWY_AVX3 ? 8 : 4;
  // With 16 registers and FMA two queries, four vectors each, take fewer loads, if they have so few
  // keys that their values stay in L1.
  static constexpr bool kSumsTwo = HWY_TARGET == HWY_AVX2;
  static constexpr int kFewKeys = 96;
  // AVX-512 is so fast that what comes from the third cache is to be asked for a tile ahead.
  static constexpr bool kFetchesFar = HWY_TARGET == HWY_AVX3;
  // Logits of a row of keys for all rows of a tile before the next row's, or of all its rows of
  // keys for as many rows as one call takes. The former has fewer calls that take one row only, in
  // which loads are more than multiply-adds, but more calls.
  static constexpr bool kTakesAllRows = HWY_TARGET == HWY_AVX3;

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

  using Rows = std::array<Row, kTileRows>;

  int rows_of_query() const { return lane_axis().phases * plan_.head_group; }

  // The next num_rows rows from *place on.
  void run_tile(int num_rows, Place* place) {
    const int x = place->x, z = place->z;
    Rows rows;
    for (int r = 0; r < num_rows; ++r, advance(place)) {
      set_up_row(*place, r, &rows[static_cast<size_t>(r)]);
    }
    const int position_z = keys_.axis(0).position(z);
    const int begin_z = keys_.axis(0).begin(position_z), end_z = keys_.axis(0).end(position_z);
    const int num_keys = visible_keys(rows, num_rows);
    for (int first = 0, last; first < num_rows; first = last) {
      const int left = num_rows - first;
      last = first + (kTakesAllRows ? left : LogitsTable<KeyLayout::shifted, D>::take_rows(left));
      for (int key_z = begin_z; key_z < end_z; ++key_z) {
        add_plane(x, key_z, num_keys, &rows, num_rows, first, last);
      }
    }
    add_additional(&rows, num_rows);
    flush(/*is_last=*/true, &rows, num_rows);
  }

  // The first query of a row; with phase 0 one that is on the axis.
  const Element* query_at(Place place, int phase) const {
    place.phase = phase;
    return query_ + query_offset(plan_.query, place);
  }

  void set_up_row(const Place& place, int r, Row* row) {
    const AxisGroup& axis = lane_axis();
    const AxisGroup& middle = keys_.axis(1);
    const int x = place.x, phase = place.phase;
    row->head = place.head;
    if (plan_.bias.given) row->bias = {axis, x, phase};
    row->position_z = keys_.axis(0).position(place.z);
    row->position_y = middle.position(place.k);
    row->key_begin = middle.begin(row->position_y);
    row->key_end = middle.end(row->position_y);
    row->num_queries = num_queries(place);
    row->output = output_ + output_offset(plan_.output, place);
    row->lse = lse_ + output_offset(plan_.lse, place);
    const Element* query = query_at(place, row->num_queries > 0 ? phase : 0);
    if constexpr (!kFetchesFar) {
      prefetch_queries_after(place);
    } else if (plan_.fetches_far) {
      prefetch_far(place, *row);
    }
    if (axis.window.is_causal) {
      for (int i = 0; i < kMaxLanes * twins(); ++i) {
        row->views[static_cast<size_t>(i)] = causal_view(axis.position(x + i) + phase);
      }
    }
    row->is_masked = axis.window.is_causal && (keys_.layout() == KeyLayout::shared ||
                                               axis.phases > 1 || row->views[0].begin > 0);
    const ptrdiff_t vector = ptrdiff_t{r} * twins();
    row->weights = scratch_ + plan_.scratch.weights + vector * plan_.weights_pitch;
    row->sums = scratch_ + plan_.scratch.sums + vector * kMaxLanes * plan_.value_pitch;

    const int last = std::max(row->num_queries - 1, 0);
    for (int t = 0; t < twins(); ++t) {
      row->states[static_cast<size_t>(t)] = empty_softmax(D());
      const auto transpose = [&](const auto& queries) {
        const auto size = static_cast<size_t>(plan_.key_words);
        if constexpr (kMayHavePairs) {
          if (plan_.has_pairs) {
            using Words = InWords<std::remove_cvref_t<decltype(queries)>>;
            return transpose_rows(D(), Words{queries}, size, kMaxLanes, Unscaled(),
                                  tile_queries(r, t));
          }
        }
        // Logits are powers of two's exponents from here on.
        transpose_rows(D(), queries, size, kMaxLanes, static_cast<T>(plan_.scale * kLog2E),
                       tile_queries(r, t));
      };
      if (row->num_queries == kMaxLanes * twins()) {
        transpose(RegularRows<Element>(query + t * query_stride(), twins() * query_stride()));
      } else {
        std::array<const Element*, kMaxLanes> queries;
        for (int lane = 0; lane < kMaxLanes; ++lane) {
          queries[static_cast<size_t>(lane)] =
              query + std::min(lane * twins() + t, last) * query_stride();
        }
        transpose(ScatteredRows<Element>{queries.data()});
      }
    }
  }

  // The queries of the row after `place`.
  void prefetch_queries_after(Place place) const {
    advance(&place);
    if (place.k >= box_.end[1]) return;
    prefetch_rows(query_at(place, place.phase), query_stride(), num_queries(place), plan_.head_dim);
  }

  // Into the second cache: where the row's output goes, the queries of the next tile, and the keys
  // and values that the next band packs; behind the last of them those of the next unit, which
  // with one thread follows.
  void prefetch_far(const Place& place, const Row& row) const {
    if (!streams_output_) {
      prefetch_rows<Fetch::far>(row.output, output_stride(), row.num_queries, plan_.head_dim_value);
    }
    prefetch_next_queries(place);
    if (place.phase > 0 || place.head > 0) return;
    const size_t axis = keys_.ring().axis == 0 ? 0 : 1;
    const KeyRange& range = keys_.range(axis);
    const int queries = std::min(keys_.ring().band, box_.end[axis] - box_.begin[axis]);
    int at[] = {row.position_z, row.position_y};
    at[axis] = keys_.axis(axis).end(at[axis]) - 1 + queries * keys_.axis(axis).step;
    const bool is_behind = at[axis] >= range.end;
    if (is_behind) at[axis] -= range.size();
    if (!keys_.box().has_row(at[0], at[1])) return;
    const int first = lane_axis().position(place.x);
    const int count =
        std::min(row.num_queries * lane_axis().step, lane_axis().window.extent - first);
    const auto fetch = [&](const Element* tensor, const Strides& strides, int size) {
      const ptrdiff_t step = is_behind ? to_next_unit(strides, 1) : 0;
      if (is_behind && step == 0) return;
      const ptrdiff_t stride = strides.token[2] * lane_axis().token_step;
      prefetch_rows<Fetch::far>(
          tensor + step + keys_.row_offset(strides, at[0], at[1]) + first * stride, stride, count,
          size);
    };
    fetch(key_, plan_.key, plan_.head_dim);
    fetch(value_, plan_.value, plan_.head_dim_value);
  }

  // Those of the row that stands at this place in the next tile.
  void prefetch_next_queries(const Place& place) const {
    Place next = place;
    const int rows = box_.end[1] - box_.begin[1];
    next.k += std::min(kTileRows / rows_of_query(), rows);
    if (next.k == place.k) return;
    ptrdiff_t step = 0;
    if (next.k >= box_.end[1]) {
      next.k -= rows;
      if (++next.z == box_.end[0]) {
        next.z = box_.begin[0];
        step = to_next_unit(plan_.query, plan_.head_group);
        if (step == 0) return;
      }
    }
    prefetch_rows<Fetch::far>(query_at(next, next.phase) + step, query_stride(), num_queries(next),
                              plan_.head_dim);
  }

  T* tile_queries(int r, int twin) const {
    return scratch_ + plan_.scratch.queries + (ptrdiff_t{r} * twins() + twin) * plan_.queries_pitch;
  }

  // Value rows of the window of the query at x: packed, or where they lie in the tensor.
  struct ValueRows {
    const T* first;
    ptrdiff_t pitch;
  };
  ValueRows window_values(int x, int key_z, int key_y) const {
    const AxisGroup& axis = lane_axis();
    if constexpr (std::is_same_v<T, Element>) {
      if (reads_shared_values_in_place()) {
        return {value_ + keys_.row_offset(plan_.value, key_z, key_y),
                plan_.value.token[2] * axis.token_step};
      }
      if (reads_in_place() && is_inside(x)) {
        const int begin = borderless_begin(axis.window, axis.position(x));
        const T* values = value_ + token_offset(plan_.value, keys_.axis(0).to_token(key_z),
                                                keys_.axis(1).to_token(key_y));
        return {values + axis.to_token(begin) * plan_.value.token[2],
                plan_.value.token[2] * axis.token_step};
      }
    }
    const ptrdiff_t first = keys_.layout() == KeyLayout::shifted
                                ? ptrdiff_t{x - box_.begin[2]} * axis.step
                                : ptrdiff_t{0};
    const ptrdiff_t row = value_row(key_z, key_y) * keys_.tokens() + first;
    return {scratch_ + plan_.scratch.values + row * plan_.value_pitch, plan_.value_pitch};
  }

  // The keys at key_z that rows [first, last) of the tile see, in parts that they have room for.
  void add_plane(int x, int key_z, int num_keys, Rows* rows, int num_rows, int first, int last) {
    const int begin = (*rows)[static_cast<size_t>(first)].key_begin;
    const int end = (*rows)[static_cast<size_t>(last - 1)].key_end;
    for (int y = begin, next; y < end; y = next) {
      int used = 0, needed = 0;
      for (int r = first; r < last; ++r) {
        const Row& row = (*rows)[static_cast<size_t>(r)];
        const int keys = std::max(0, row.key_end - std::max(y, row.key_begin)) * num_keys;
        used = std::max(used, row.slots);
        needed = std::max(needed, row.slots + keys);
      }
      next = end;
      if (needed > plan_.max_slots) {
        if (used > 0) flush(/*is_last=*/false, rows, num_rows);
        next = std::clamp(y + plan_.max_slots / std::max(num_keys, 1), y + 1, end);
      }
      for (int j = 0; j < num_keys; j += plan_.max_slots) {
        if (j > 0) flush(/*is_last=*/false, rows, num_rows);
        const KeyBlock block = {x, key_z, y, next, j, std::min(plan_.max_slots, num_keys - j)};
        if (keys_.layout() == KeyLayout::shifted) {
          add_block<KeyLayout::shifted>(block, rows, first, last);
        } else {
          add_block<KeyLayout::shared>(block, rows, first, last);
        }
      }
    }
  }

  // Keys [j, j + count) of the windows of the queries at x, in the rows [begin, end) of keys at z.
  struct KeyBlock {
    int x, z, begin, end, j, count;
  };

  // Takes the keys of a block into those of the rows [first, last) of the tile that see them.
  template <KeyLayout kLayout>
  void add_block(const KeyBlock& block, Rows* rows, int first, int last) {
    LogitsArguments<T> arguments = logits_arguments<kLayout>(block.j, block.count);
    const ptrdiff_t queries = column_offset<kLayout>(block.x, block.j);
    for (int y = block.begin, next; y < block.end; y = next) {
      // Windows only move forward from row to row: those that hold y follow each other.
      int begin = first, end = last;
      while (y >= (*rows)[static_cast<size_t>(begin)].key_end) ++begin;
      while (y < (*rows)[static_cast<size_t>(end - 1)].key_begin) --end;
      // Up to `next` they hold the same rows of keys; none between windows of a downsampled axis.
      next = std::min(block.end, y + keys_.rows_together(y));
      if (end < last) next = std::min(next, (*rows)[static_cast<size_t>(end)].key_begin);
      if (begin >= end) continue;
      next = std::min(next, (*rows)[static_cast<size_t>(begin)].key_end);
      arguments.keys = scratch_ + plan_.scratch.keys + keys_.row(block.z, y) * key_row_ + queries;
      if constexpr (kLayout == KeyLayout::shared && std::is_same_v<T, Element>) {
        if (plan_.keys_in_place) {
          arguments.key_pitch = plan_.key.token[2] * lane_axis().token_step;
          arguments.keys =
              key_ + keys_.row_offset(plan_.key, block.z, y) + block.j * arguments.key_pitch;
        }
      }
      arguments.rows = next - y;
      for (int r = begin, taken; r < end; r += taken) {
        taken = twins() > 1 ? 1 : LogitsTable<kLayout, D>::take_rows(end - r);
        for (int i = 0; i < taken; ++i) {
          const Row& row = (*rows)[static_cast<size_t>(r + i)];
          const int slot = row.slots + (y - std::max(block.begin, row.key_begin)) * block.count;
          arguments.weights[i] = row.weights + ptrdiff_t{slot} * kMaxLanes;
        }
        compute_logits<kLayout>(r, taken, block.count, &arguments);
      }
    }
    for (int r = first; r < last; ++r) add_runs(block, &(*rows)[static_cast<size_t>(r)]);
  }

  // The runs of a block's keys that a row sees, and their bias.
  void add_runs(const KeyBlock& block, Row* row) {
    const int begin = std::max(block.begin, row->key_begin);
    const int end = std::min(block.end, row->key_end);
    for (int y = begin, next; y < end; y = next) {
      next = std::min(end, y + keys_.rows_together(y));
      const ValueRows values = window_values(block.x, block.z, y);
      // Field by field: copying what was just written in parts as a whole would wait for it.
      row->runs[static_cast<size_t>(row->num_runs++)] = {
          .values = values.first + block.j * values.pitch,
          .pitch = values.pitch,
          .row_step = keys_.tokens() * values.pitch,
          .slot = row->slots,
          .rows = next - y,
          .count = block.count,
          .first_key = block.j,
          .is_shared = keys_.layout() == KeyLayout::shared,
          .is_window = true,
          .begins_within = plan_.has_value_pairs && (y - keys_.range(1).begin) % 2 != 0,
          .ends_within = false};
      if (plan_.bias.given) add_bias(block, y, next, *row);
      row->slots += (next - y) * block.count;
    }
    row->num_window_runs = row->num_runs;
  }

  // To the logits of the rows [begin, end) of keys, which begin at row.slots.
  void add_bias(const KeyBlock& block, int begin, int end, const Row& row) const {
    for (int y = begin; y < end; ++y) {
      const T* table = scratch_ + plan_.scratch.bias + ptrdiff_t{row.head} * plan_.bias.size() +
                       bias_entry(plan_.bias, block.z - row.position_z, y - row.position_y);
      const ptrdiff_t slot = row.slots + (y - begin) * block.count;
      for (int t = 0; t < twins(); ++t) {
        row.bias.add(table, block.j, block.count, t,
                     row.weights + t * plan_.weights_pitch + slot * kMaxLanes);
      }
    }
  }

  // Additional tokens, which all rows see.
  void add_additional(Rows* rows, int num_rows) {
    for (int64_t j = 0; j < plan_.additional_tokens; j += plan_.max_slots) {
      const auto count =
          static_cast<int>(std::min<int64_t>(plan_.max_slots, plan_.additional_tokens - j));
      for (int r = 0; r < num_rows; ++r) {
        if ((*rows)[static_cast<size_t>(r)].slots + count <= plan_.max_slots) continue;
        flush(/*is_last=*/false, rows, num_rows);
        break;
      }
      LogitsArguments<T> arguments = logits_arguments<KeyLayout::shared>(0, count);
      arguments.keys = scratch_ + plan_.scratch.additional_keys + j * plan_.key_pitch;
      arguments.rows = 1;
      for (int r = 0, taken; r < num_rows; r += taken) {
        taken = twins() > 1 ? 1 : LogitsTable<KeyLayout::shared, D>::take_rows(num_rows - r);
        for (int i = 0; i < taken; ++i) {
          const Row& row = (*rows)[static_cast<size_t>(r + i)];
          arguments.weights[i] = row.weights + ptrdiff_t{row.slots} * kMaxLanes;
        }
        compute_logits<KeyLayout::shared>(r, taken, count, &arguments);
      }
      for (int r = 0; r < num_rows; ++r) {
        Row& row = (*rows)[static_cast<size_t>(r)];
        row.runs[static_cast<size_t>(row.num_runs++)] = {
            .values = scratch_ + plan_.scratch.additional_values + j * plan_.value_pitch,
            .pitch = plan_.value_pitch,
            .row_step = 0,
            .slot = row.slots,
            .rows = 1,
            .count = count,
            .first_key = 0,
            .is_shared = true,
            .is_window = false,
            .begins_within = false,
            .ends_within = false};
        row.slots += count;
      }
    }
  }

  // What all calls for `count` keys of each row from key j on have in common.
  template <KeyLayout kLayout>
  LogitsArguments<T> logits_arguments(int j, int count) const {
    constexpr bool kIsShifted = kLayout == KeyLayout::shifted;
    LogitsArguments<T> arguments;
    arguments.head_dim = plan_.key_words;
    arguments.query_pitch = plan_.queries_pitch;
    arguments.key_offsets = kIsShifted ? keys_.key_offsets() + j : nullptr;
    arguments.key_pitch = plan_.key_pitch;
    arguments.key_step = kIsShifted ? keys_.pitch() : 1;
    arguments.key_row = key_row_;
    arguments.weight_row = ptrdiff_t{count} * kMaxLanes;
    return arguments;
  }

  // Where the keys from j on of the queries at x lie in a packed row.
  template <KeyLayout kLayout>
  ptrdiff_t column_offset(int x, int j) const {
    return kLayout == KeyLayout::shared ? ptrdiff_t{j} * plan_.key_pitch
                                        : keys_.column(x, plan_.key_words);
  }

  // Of rows [r, r + count) of the tile, whose first vector's weights are given.
  template <KeyLayout kLayout>
  void compute_logits(int r, int count, int keys, LogitsArguments<T>* arguments) const {
    arguments->queries = tile_queries(r, 0);
    for (int t = 1; t < twins(); ++t) {
      arguments->weights[t] = arguments->weights[0] + t * ptrdiff_t{plan_.weights_pitch};
    }
    if constexpr (kMayHavePairs) {
      if (plan_.has_pairs) {
        arguments->scale = static_cast<T>(plan_.scale * kLog2E);
        return LogitsTable<kLayout, D, true>::run(count, twins(), keys, *arguments);
      }
    }
    LogitsTable<kLayout, D>::run(count, twins(), keys, *arguments);
  }

  // Softmax and values of the keys that the rows hold; the last time also output and lse. Each step
  // is done for all rows before the next: they wait less that way.
  void flush(bool is_last, Rows* rows, int num_rows) {
    const D d;
    std::array<hn::Vec<D>, kTileRows * kMaxTwins> before;
    for (int r = 0; r < num_rows; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      if (row.is_masked) hide_keys(row);
      for (int t = 0; t < twins(); ++t) {
        SoftmaxState<D>& state = row.states[static_cast<size_t>(t)];
        before[static_cast<size_t>(r * kMaxTwins + t)] = state.max;
        state.max = largest_logit(d, static_cast<size_t>(row.slots),
                                  row.weights + t * plan_.weights_pitch, state.max);
      }
    }
    for (int r = 0; r < num_rows; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      for (int t = 0; t < twins(); ++t) {
        T* weights = row.weights + t * plan_.weights_pitch;
        SoftmaxState<D>& state = row.states[static_cast<size_t>(t)];
        const auto& largest_before = before[static_cast<size_t>(r * kMaxTwins + t)];
        const auto take = [&]() VECINA_INLINE {
          if constexpr (kMayHavePairs) {
            if (plan_.has_value_pairs) {
              return softmax</*kIsWhole=*/false>(
                  d, largest_before, &state, [&](hn::Vec<D> base) VECINA_INLINE {
                    return exponentiate_pairs(d, row.num_runs, row.runs.data(), base, weights);
                  });
            }
          }
          return softmax(d, largest_before, &state, [&](hn::Vec<D> base) VECINA_INLINE {
            return exponentiate(d, static_cast<size_t>(row.slots), base, weights);
          });
        };
        const auto shrink = take();
        hn::Store(shrink, d, weights + shrink_offset<D>());
        if (is_last) {
          const auto inverse = hn::IfThenZeroElse(hn::Eq(state.sum, hn::Zero(d)),
                                                  hn::Div(hn::Set(d, T{1}), state.sum));
          hn::Store(inverse, d, weights + inverse_offset<D>());
          if (plan_.has_lse) write_lse(row, t);
        }
      }
    }
    for (int r = 0; r < num_rows; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      weigh_queries(row, is_last);
      row.has_sums = true;
      row.slots = row.num_runs = row.num_window_runs = 0;
    }
  }

  void hide_keys(const Row& row) const {
    for (int i = 0; i < row.num_runs; ++i) {
      const KeyRun<T>& run = row.runs[static_cast<size_t>(i)];
      if (!run.is_window) continue;
      for (int t = 0; t < twins(); ++t) {
        hide(D(), run, row.views.data() + t, static_cast<size_t>(twins()),
             row.weights + t * plan_.weights_pitch);
      }
    }
  }

  void weigh_queries(const Row& row, bool is_last) {
    if (plan_.has_value_pairs) {
      if constexpr (kMayHavePairs) weigh_queries<1, true>(row, is_last);
    } else if (twins() == 1) {
      weigh_queries<1>(row, is_last);
    } else if constexpr (kHasTwins<D>) {
      weigh_queries<kMaxTwins>(row, is_last);
    }
  }

  template <int kTwins, bool kArePairs = false>
  void weigh_queries(const Row& row, bool is_last) {
    const AxisGroup& axis = lane_axis();
    const bool has_views =
        row.is_masked && (keys_.layout() == KeyLayout::shared || axis.phases > 1);
    const ValueArguments<D> arguments = {
        row.runs.data(), row.num_runs, row.num_window_runs,
        row.weights,     axis.step,    has_views ? row.views.data() : nullptr};
    bool is_level = true;
    int shortest = keys_.layout() == KeyLayout::shifted && axis.step == 1 ? kManyQueries : 0;
    for (int i = 0; i < row.num_runs; ++i) {
      const KeyRun<T>& run = row.runs[static_cast<size_t>(i)];
      if (run.is_shared) continue;
      is_level = false;
      shortest = std::min(shortest, run.count);
    }
    const int begin = 0, end = row.num_queries;
    const int many = end / kManyQueries * kManyQueries, quads = end / 4 * 4;
    int done = 0;
    if (kSumsTwo && plan_.value_pitch % (4 * kValueLanes) == 0 && !is_level && shortest > 0 &&
        row.slots <= kFewKeys) {
      const int pairs = end / 2 * 2;
      weigh<Sharing::stairs, kArePairs, kTwins, 2, 4>(row, arguments, is_last, begin, pairs);
      done = pairs;
    } else if (is_level) {
      weigh<Sharing::level, kArePairs, kTwins, kManyQueries>(row, arguments, is_last, begin, many);
      weigh<Sharing::level, kArePairs, kTwins, 4>(row, arguments, is_last, many, quads);
      done = quads;
    } else if (shortest >= 3) {
      if (shortest >= kManyQueries - 1) {
        weigh<Sharing::stairs, kArePairs, kTwins, kManyQueries>(row, arguments, is_last, begin,
                                                                many);
        done = many;
      } else if constexpr (kManyQueries > 6 && kTwins == 1) {  // twins are added up four at a time
        if (shortest >= 5) {
          done = end / 6 * 6;
          if (done > 0 && (end - done) % 4 >= 2) done -= 6;  // fours leave fewer alone
          weigh<Sharing::stairs, kArePairs, kTwins, 6>(row, arguments, is_last, begin, done);
        }
      }
      const int left = (end - done) / 4 * 4;
      weigh<Sharing::stairs, kArePairs, kTwins, 4>(row, arguments, is_last, done, done + left);
      done += left;
    }
    weigh<Sharing::none, kArePairs, kTwins, 1>(row, arguments, is_last, done, end);
  }

  // Queries [begin, end) of a row, kQueries at a time.
  template <Sharing kSharing, bool kArePairs, int kTwins, int kQueries, int kVectors = 2>
  void weigh(const Row& row, const ValueArguments<D>& arguments, bool is_last, int begin, int end) {
    if (begin >= end) return;
    const auto target = [&](ptrdiff_t column) {
      return SumsTarget<T, Element>{row.sums + column,
                                    plan_.value_pitch,
                                    row.has_sums,
                                    is_last,
                                    row.output + column,
                                    output_stride(),
                                    plan_.head_dim_value - column,
                                    streams_output_};
    };
    ptrdiff_t column = 0;
    constexpr ptrdiff_t kColumns = kVectors * kValueLanes;
    for (; column + kColumns <= plan_.value_pitch; column += kColumns) {
      if (is_last && !row.has_sums && column + kColumns <= plan_.head_dim_value) {
        weigh_values<kSharing, kTwins, kQueries, kVectors, true, kArePairs>(
            Values(), arguments, begin, end, column, target(column));
      } else {
        weigh_values<kSharing, kTwins, kQueries, kVectors, false, kArePairs>(
            Values(), arguments, begin, end, column, target(column));
      }
    }
    if (column < plan_.value_pitch) {
      weigh_values<kSharing, kTwins, kQueries, 1, false, kArePairs>(Values(), arguments, begin, end,
                                                                    column, target(column));
    }
  }

  void write_lse(const Row& row, int twin) {
    const D d;
    HWY_ALIGN T lse[kMaxLanes];
    hn::Store(log_sum_exp(d, row.states[static_cast<size_t>(twin)]), d, lse);
    const ptrdiff_t stride = lane_axis().output_step * plan_.lse.token[2];
    for (int lane = 0, i = twin; i < row.num_queries; ++lane, i += twins()) {
      row.lse[i * stride] = lse[lane];
    }
  }
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_FORWARD_TILES_INL_H_
