// SPDX-License-Identifier: MIT
// Sums of the gradients of keys and values over the queries of a tile that see them.
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_KEY_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_KEY_SUMS_INL_H_
#undef VECINA_CPU_KEY_SUMS_INL_H_
#else
#define VECINA_CPU_KEY_SUMS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>

#include "cpu/backward.h"
#include "cpu/backward_tile-inl.h"
#include "cpu/sums-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class KeySums {
 public:
  using Tile = BackwardTile<Element>;
  using Row = typename Tile::Row;
  using Rows = typename Tile::Rows;
  using Run = typename Tile::Run;
  using T = typename Tile::T;

  KeySums(const BackwardPlan& plan, const AxisGroup& lane_axis, T* scratch)
      : plan_(plan), step_(lane_axis.step), scratch_(scratch) {}

  // True if every run of whole windows goes to add_stairs(), and those are all that a tile has.
  static bool starts_sums(const AxisGroup& lane_axis, int max_slots) {
    const int keys = lane_axis.window.kernel_size;
    return key_layout(lane_axis) == KeyLayout::shifted && lane_axis.step == 1 &&
           lane_axis.phases == 1 && keys <= max_slots && Sums::most_in_stairs(keys) > 1;
  }
  // Keys of a row that add_stairs() writes the sums of, for windows of so many keys.
  static int keys_written(int window) {
    const int take = Sums::most_in_stairs(window);
    return (kLanes - 1 + window + take - 1) / take * take;
  }

  // sums of the run's keys += weight * row of queries, over all rows of the tile that see them.
  // Lanes that are no queries are left out.
  void add(const Run& run, const Rows& rows, size_t query_array, size_t weight_array, int pitch,
           T* sums) const {
    std::array<Segment<T>, kBackwardRows> segments;
    const int count = run.last - run.first;
    int lanes = 0;  // of the row that has most
    bool sees_all = true;
    for (int i = 0; i < count; ++i) {
      const int r = run.first + i;
      const auto slot = ptrdiff_t{run.slots[static_cast<size_t>(r)]};
      segments[static_cast<size_t>(i)] = {
          tile(query_array, r, pitch), tile(weight_array, r, plan_.weights_pitch) + slot * kLanes,
          rows[static_cast<size_t>(r)].num_queries};
      lanes = std::max(lanes, rows[static_cast<size_t>(r)].num_queries);
      sees_all = sees_all && !(run.is_window && rows[static_cast<size_t>(r)].has_views);
    }
    if (!sees_all) {
      add_seen(run, rows, segments.data(), pitch, sums);
    } else if (run.is_shared) {
      add_shared(run, segments.data(), count, pitch, sums);
    } else if (step_ == 1 && Sums::most_in_stairs(run.count) > 1) {
      add_stairs(run, lanes, segments.data(), count, pitch, sums);
    } else {
      add_shifted(run, lanes, segments.data(), count, pitch, sums);
    }
  }

 private:
  using Sums = RowSums<typename Tile::D>;
  static constexpr int kLanes = Tile::kLanes;

  T* tile(size_t array, int r, int pitch) const {
    return scratch_ + array + ptrdiff_t{r} * kLanes * pitch;
  }

  // All queries see all keys.
  void add_shared(const Run& run, const Segment<T>* segments, int count, int pitch, T* sums) const {
    Walk walk;
    walk.row_step = pitch;
    walk.weight_step = 1;
    for (int j = 0, take; j < run.count; j += take) {
      walk.weight_offset = ptrdiff_t{j} * kLanes;
      take = Sums::take(run.count - j);
      if (take == 1) {
        Sums::single(segments, count, walk, pitch, sums + ptrdiff_t{j} * pitch);
      } else {
        Sums::level(take, Weights::of_keys, segments, count, walk, pitch,
                    sums + ptrdiff_t{j} * pitch, pitch);
      }
    }
  }

  // Windows that move by one key with each lane. Key c of the tile's row is key c - lane of a
  // lane's window, so the queries that see it are the lanes c - count + 1 to c: a few neighbouring
  // keys take stairs of queries, each query's weight being one lane further and one key back.
  void add_stairs(const Run& run, int lanes, Segment<T>* segments, int count, int pitch,
                  T* sums) const {
    for (int i = 0; i < count; ++i) segments[i].count = run.count;
    Walk walk;
    walk.row_step = pitch;
    const int take = Sums::most_in_stairs(run.count);
    const int fresh = run.first_fresh;
    int c = 0;
    for (; c < lanes - 1 + run.count; c += take) {
      const int lane = c - run.count + 1;  // of the stairs' first step
      walk.begin = std::max(0, -lane);
      walk.end = std::min(run.count + take - 1, lanes - lane);
      walk.row_offset = ptrdiff_t{lane} * pitch;
      walk.weight_offset = ptrdiff_t{run.count - 1} * kLanes + lane;
      walk.starts = c >= fresh;
      if (c < fresh && fresh < c + take) {
        std::fill_n(sums + ptrdiff_t{fresh} * pitch, ptrdiff_t{c + take - fresh} * pitch, T{0});
      }
      Sums::stairs(take, Weights::of_keys, segments, count, walk, pitch,
                   sums + ptrdiff_t{c} * pitch, pitch);
    }
    for (; c < kLanes - 1 + run.count; c += take) {  // seen by lanes that are no queries
      const int first = std::max(c, fresh), left = c + take - first;
      if (left > 0) std::fill_n(sums + ptrdiff_t{first} * pitch, ptrdiff_t{left} * pitch, T{0});
    }
  }

  // Windows that move by several keys with each lane, or are short.
  void add_shifted(const Run& run, int lanes, Segment<T>* segments, int count, int pitch,
                   T* sums) const {
    const int step = step_;
    Walk walk;
    walk.row_step = pitch;
    walk.weight_step = 1 - ptrdiff_t{step} * kLanes;
    for (int c = 0; c < (lanes - 1) * step + run.count; ++c) {
      const int first = c < run.count ? 0 : (c - run.count) / step + 1;
      const int last = std::min(c / step, lanes - 1);
      if (first > last) continue;  // between the windows
      for (int i = 0; i < count; ++i) segments[i].count = last - first + 1;
      walk.row_offset = ptrdiff_t{first} * pitch;
      walk.weight_offset = ptrdiff_t{c - first * step} * kLanes + first;
      Sums::single(segments, count, walk, pitch, sums + ptrdiff_t{c} * pitch);
    }
  }

  // Rows whose lanes see a part of the run each.
  void add_seen(const Run& run, const Rows& rows, const Segment<T>* segments, int pitch,
                T* sums) const {
    const ptrdiff_t lane_step = run.is_shared ? 0 : step_;
    Walk walk;
    walk.row_step = pitch;
    walk.weight_step = 1;
    for (int r = run.first; r < run.last; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      const Segment<T>& all = segments[r - run.first];
      if (run.is_shared) {
        add_causal(run, row, all, pitch, sums);
        continue;
      }
      for (int j = 0; j < run.count; ++j) {
        walk.weight_offset = ptrdiff_t{j} * kLanes;
        for (int lane = 0; lane < row.num_queries; ++lane) {
          if (!row.views[static_cast<size_t>(lane)].sees(run.first_key + j)) continue;
          const Segment<T> one = {all.rows + ptrdiff_t{lane} * pitch, all.weights + lane, 1};
          Sums::single(&one, 1, walk, pitch, sums + (j + lane * lane_step) * pitch);
        }
      }
    }
  }

  // One row of the shared layout: each key is seen by all lanes from some one on.
  void add_causal(const Run& run, const Row& row, const Segment<T>& all, int pitch, T* sums) const {
    Walk walk;
    walk.row_step = pitch;
    walk.weight_step = 1;
    const auto lanes_from = [&](int begin, int end) {
      return Segment<T>{all.rows + ptrdiff_t{begin} * pitch, all.weights + begin, end - begin};
    };
    int common = row.num_queries;  // the first lane that sees the keys before common_end
    int common_end = 0;
    for (int j = 0; j < run.count; ++j) {
      T* to = sums + ptrdiff_t{j} * pitch;
      walk.weight_offset = ptrdiff_t{j} * kLanes;
      if (j == common_end) {
        const int take = Sums::take(run.count - j);
        common_end += take;
        common = take == 1 ? row.num_queries : first_lane(row, run.first_key + common_end - 1);
        const Segment<T> some = lanes_from(common, row.num_queries);
        if (some.count > 0) Sums::level(take, Weights::of_keys, &some, 1, walk, pitch, to, pitch);
      }
      const Segment<T> some = lanes_from(first_lane(row, run.first_key + j), common);
      if (some.count > 0) Sums::single(&some, 1, walk, pitch, to);
    }
  }

  // The first lane of a causal row of the shared layout that sees a key.
  static int first_lane(const Row& row, int key) {
    int lane = 0;
    while (lane < row.num_queries && row.views[static_cast<size_t>(lane)].visible <= key) ++lane;
    return lane;
  }

  const BackwardPlan& plan_;
  const int step_;
  T* const scratch_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_KEY_SUMS_INL_H_
