// SPDX-License-Identifier: MIT
// Sums of the gradients of a tile's queries over the keys that they see, and those gradients.
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_QUERY_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_QUERY_SUMS_INL_H_
#undef VECINA_CPU_QUERY_SUMS_INL_H_
#else
#define VECINA_CPU_QUERY_SUMS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/backward.h"
#include "cpu/backward_tile-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/sums-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class QuerySums {
 public:
  using Tile = BackwardTile<Element>;
  using Row = typename Tile::Row;
  using Run = typename Tile::Run;
  using T = typename Tile::T;
  using D = typename Tile::D;
  using Sums = RowSums<D>;
  static constexpr int kLanes = Tile::kLanes;

  // is_streamed: gradients are whole vectors that are written past the caches.
  QuerySums(const BackwardPlan& plan, const AxisGroup& lane_axis, T* scratch, bool is_streamed)
      : plan_(plan),
        lane_axis_(lane_axis),
        is_shared_(key_layout(lane_axis) == KeyLayout::shared),
        scratch_(scratch),
        is_streamed_(is_streamed) {}

  // True if add() may write gradients: it gets all keys at once, and sums of nothing but queries.
  bool can_write(const Row& row, bool is_whole) const {
    return std::is_same_v<T, Element> && is_whole && !is_streamed_ &&
           plan_.additional_tokens == 0 && !row.has_views && plan_.head_dim == plan_.key_pitch &&
           row.num_queries % Sums::kFew == 0;
  }

  // sums += dS * key, over the keys that row r holds.
  void add(const Run* runs, int num_runs, Row* row, int r) const {
    std::array<Segment<T>, Tile::kMaxRuns> window, additional;
    int num_window = 0, num_additional = 0;
    int shortest = plan_.max_slots;
    for (int i = 0; i < num_runs; ++i) {
      const Run& run = runs[i];
      if (!run.is_seen_by(r)) continue;
      const T* weights =
          scratch_ + plan_.scratch.grad_logits +
          (ptrdiff_t{r} * plan_.weights_pitch + ptrdiff_t{run.slots[static_cast<size_t>(r)]}) *
              kLanes;
      const Segment<T> segment = {run.keys, weights, run.count};
      if (!run.is_window) {
        additional[static_cast<size_t>(num_additional++)] = segment;
      } else if (row->has_views) {
        if (!row->has_sums) clear(row, r);
        add_seen(run, *row, segment, r);
      } else {
        window[static_cast<size_t>(num_window++)] = segment;
        shortest = std::min(shortest, run.count);
      }
    }
    const int most = !is_shared_ && lane_axis_.step == 1 ? Sums::most_in_stairs(shortest) : 1;
    if (num_window > 0) {
      add_to_lanes(row, r, window.data(), num_window, most,
                   is_shared_ ? 0 : ptrdiff_t{lane_axis_.step} * plan_.key_pitch);
    }
    if (num_additional > 0) {
      add_to_lanes(row, r, additional.data(), num_additional, /*most_in_stairs=*/1, 0);
    }
  }

  // Gradients of the row's queries, from their sums.
  void write(Row* row, int r) const {
    if (row->is_written_at_once && row->has_sums) return;
    if (!row->has_sums) clear(row, r);
    const D d;
    const auto scale = hn::Set(d, static_cast<T>(plan_.scale));
    const T* sums = this->sums(r);
    for (int lane = 0; lane < row->num_queries; ++lane, sums += plan_.key_pitch) {
      Element* to = row->grad_query + lane * stride();
      for (int i = 0; i < plan_.head_dim; i += kLanes) {
        const auto sum = hn::Mul(scale, hn::Load(d, sums + i));
        if (i + kLanes <= plan_.head_dim) {
          store_or_stream(d, sum, is_streamed_, to + i);
        } else {
          store_some(d, sum, static_cast<size_t>(plan_.head_dim - i), to + i);
        }
      }
    }
  }

 private:
  T* sums(int r) const {
    return scratch_ + plan_.scratch.grad_queries + ptrdiff_t{r} * kLanes * plan_.key_pitch;
  }
  void clear(Row* row, int r) const {
    std::fill_n(sums(r), ptrdiff_t{kLanes} * plan_.key_pitch, T{0});
    row->has_sums = true;
  }
  // From query to query of a row, in elements.
  int64_t stride() const {
    return int64_t{lane_axis_.token_step} * lane_axis_.step * plan_.grad_query.token[2];
  }

  // Segments that start `lane_step` elements later with each lane.
  void add_to_lanes(Row* row, int r, const Segment<T>* segments, int count, int most_in_stairs,
                    ptrdiff_t lane_step) const {
    const int size = plan_.key_pitch;
    T* to = sums(r);
    ptrdiff_t pitch = size;
    int lanes = kLanes;
    Walk walk;
    walk.row_step = size;
    walk.weight_step = kLanes;
    walk.starts = !row->has_sums;
    row->has_sums = true;
    if constexpr (std::is_same_v<T, Element>) {
      if (row->is_written_at_once) {
        to = row->grad_query;
        pitch = stride();
        lanes = row->num_queries;
        walk.scale = plan_.scale;
      }
    }
    const bool is_stairs = most_in_stairs > 1;
    walk.end = plan_.max_slots + Sums::kMost - 1;
    for (int lane = 0, take; lane < row->num_queries; lane += take) {
      walk.row_offset = lane * lane_step;
      walk.weight_offset = lane;
      take = is_stairs        ? Sums::take(lanes - lane, most_in_stairs)
             : lane_step == 0 ? Sums::take(lanes - lane)
                              : 1;
      if (take == 1) {
        Sums::single(segments, count, walk, size, to + lane * pitch);
      } else if (is_stairs) {
        Sums::stairs(take, Weights::of_queries, segments, count, walk, size, to + lane * pitch,
                     pitch);
      } else {
        Sums::level(take, Weights::of_queries, segments, count, walk, size, to + lane * pitch,
                    pitch);
      }
    }
  }

  // A run of which each lane sees a part.
  void add_seen(const Run& run, const Row& row, const Segment<T>& segment, int r) const {
    const int pitch = plan_.key_pitch;
    const ptrdiff_t lane_step = run.is_shared ? 0 : ptrdiff_t{lane_axis_.step} * pitch;
    T* sums = this->sums(r);
    Walk walk;
    walk.row_step = pitch;
    walk.weight_step = kLanes;
    int common = 0, common_end = 0;  // keys that the lanes before common_end all see
    for (int lane = 0; lane < row.num_queries; ++lane) {
      walk.weight_offset = lane;
      walk.row_offset = lane * lane_step;
      if (run.is_shared && lane == common_end) {  // each lane sees more than the one before
        const int take = Sums::take(kLanes - lane);
        common_end += take;
        common = take == 1 ? 0 : part_seen(run, row, lane).visible;
        Segment<T> all = segment;
        all.count = common;
        if (common > 0) {
          Sums::level(take, Weights::of_queries, &all, 1, walk, pitch, sums + lane * pitch, pitch);
        }
      }
      const QueryView seen = part_seen(run, row, lane);
      const int parts[2][2] = {{std::max(seen.begin, common), seen.visible},
                               {seen.wrapped, run.count}};
      for (const auto& part : parts) {
        if (part[0] >= part[1]) continue;
        const Segment<T> some = {segment.rows + ptrdiff_t{part[0]} * pitch,
                                 segment.weights + ptrdiff_t{part[0]} * kLanes, part[1] - part[0]};
        Sums::single(&some, 1, walk, pitch, sums + lane * pitch);
      }
    }
  }

  // What a lane sees of a run, counted from its first key.
  static QueryView part_seen(const Run& run, const Row& row, int lane) {
    const QueryView& view = row.views[static_cast<size_t>(lane)];
    const auto within = [&](int key) { return std::clamp(key - run.first_key, 0, run.count); };
    return {within(view.begin), within(view.visible),
            std::max(within(view.visible), within(view.wrapped))};
  }

  const BackwardPlan& plan_;
  const AxisGroup& lane_axis_;
  const bool is_shared_;
  T* const scratch_;
  const bool is_streamed_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_QUERY_SUMS_INL_H_
