// SPDX-License-Identifier: MIT
// Walks one unit of the forward pass: bands of queries, for each of which keys are packed, then
// tiles of query rows x one vector of queries.
// Part of each forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_FORWARD_INL_H_
#undef VECINA_CPU_FORWARD_INL_H_
#else
#define VECINA_CPU_FORWARD_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/direct-inl.h"
#include "cpu/forward.h"
#include "cpu/forward_tiles-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class ForwardUnit : ForwardTiles<Element, hn::ScalableTag<typename ComputeType<Element>::type>> {
  using Base = ForwardTiles<Element, hn::ScalableTag<typename ComputeType<Element>::type>>;
  using typename Base::T;

 public:
  using Base::Base;

  void run() {
    this->pack_for_all_tiles();
    walk_bands([&](int z, int y, int end_y) { pack_row(z, y, end_y); },
               [&](const Box& band) { run_band(band); });
    if (streams_output_) hwy::FlushStream();
  }

 private:
  using Base::box_, Base::key_, Base::key_row_, Base::keys_, Base::plan_, Base::scratch_,
      Base::streams_output_, Base::value_;
  using Base::is_inside, Base::lane_axis, Base::reads_in_place, Base::reads_shared_values_in_place,
      Base::run_column, Base::twins, Base::value_row, Base::walk_bands;
  using Base::kMaxLanes, Base::kMayHavePairs;

  void run_band(const Box& band) {
    const int queries = kMaxLanes * twins();
    int x = box_.begin[2];
    for (; x + queries <= box_.end[2]; x += queries) run_column(x, band);
    if (x == box_.end[2]) return;
    if constexpr (kHasNarrowVectors) {
      if (lane_axis().narrows_last && 2 * (box_.end[2] - x) <= kMaxLanes) {
        return ForwardTiles<Element, NarrowTag<T>>(*this).run_column(x, band);
      }
    }
    run_column(x, band);
  }

  // Rows up to end_y are packed too before any is read.
  void pack_row(int z, int y, int end_y) {
    const Element* key = key_ + keys_.row_offset(plan_.key, z, y);
    const Element* value = value_ + keys_.row_offset(plan_.value, z, y);
    const ptrdiff_t row = keys_.row(z, y);
    const auto copy_values = [&](int begin, int end) {
      keys_.copy(value, plan_.value, begin, end, plan_.head_dim_value, plan_.value_pitch,
                 scratch_ + plan_.scratch.values + row * keys_.tokens() * plan_.value_pitch);
    };
    if (plan_.has_value_pairs) {
      if constexpr (kMayHavePairs) pack_value_pair(z, y, end_y);
    } else if (reads_in_place()) {
      const AxisGroup& axis = lane_axis();
      const int queries = kMaxLanes * axis.twins;
      for (int x = box_.begin[2]; x < box_.end[2]; x += queries) {
        if (is_inside(x)) continue;
        const int first = (x - box_.begin[2]) * axis.step;
        const int end = first + axis.step * (queries - 1) + axis.window.kernel_size;
        copy_values(first, std::min(end, keys_.tokens()));  // the last vector may be narrower
      }
    } else if (!reads_shared_values_in_place()) {
      copy_values(0, keys_.tokens());
    }
    T* keys = scratch_ + plan_.scratch.keys + row * key_row_;
    const bool is_shifted = keys_.layout() == KeyLayout::shifted;
    if constexpr (kMayHavePairs) {
      if (plan_.has_pairs) {
        return is_shifted ? keys_.template transpose<true>(key, plan_.key, plan_.key_words, keys)
                          : keys_.copy_words(key, plan_.key, plan_.key_words, keys);
      }
    }
    if (is_shifted) {
      keys_.transpose(key, plan_.key, plan_.head_dim, keys);
    } else if (!plan_.keys_in_place) {
      keys_.copy(key, plan_.key, 0, keys_.tokens(), plan_.head_dim, plan_.key_pitch, keys);
    }
  }

  // With the second of two rows both; the first alone if the second does not follow yet.
  void pack_value_pair(int z, int y, int end_y) {
    const bool is_second = (y - keys_.range(1).begin) % 2 != 0;
    if (!is_second && y + 1 < end_y) return;
    const int first = is_second ? y - 1 : y;
    const auto row = [&](int at) { return value_ + keys_.row_offset(plan_.value, z, at); };
    keys_.copy_beside(
        row(first), is_second ? row(y) : nullptr, plan_.value, plan_.head_dim_value,
        plan_.value_pitch,
        scratch_ + plan_.scratch.values + value_row(z, y) * keys_.tokens() * plan_.value_pitch);
  }
};

template <typename Element>
inline constexpr bool kHasDirectForm = sizeof(typename ComputeType<Element>::type) == 4;

template <typename Element>
void run_forward_unit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit,
                      void* scratch) {
  if (plan.matrix.is_used()) return plan.matrix.run(plan, pointers, unit, scratch);
  if constexpr (kHasDirectForm<Element>) {
    if (plan.direct.is_used) return DirectUnit<Element>(plan, pointers, unit, scratch).run();
  }
  ForwardUnit<Element>(plan, pointers, unit, scratch).run();
}

template <typename Element>
ForwardKernel make_forward_kernel() {
  using T = typename ComputeType<Element>::type;
  const int lanes = static_cast<int>(hn::Lanes(hn::ScalableTag<T>()));
  // Additions across more lanes would cost more than what packing costs.
  const int direct_lanes = kHasDirectForm<Element> ? std::min(lanes, kMaxDirectLanes) : 0;
  ForwardKernel kernel = {&run_forward_unit<Element>,
                          lanes,
                          direct_lanes,
                          kHasNarrowVectors,
                          sizeof(T),
                          hwy::TargetName(HWY_TARGET),
                          kHasMaskedLoads && std::is_same_v<Element, float>};
#if HWY_TARGET == HWY_AVX3
  // On Intel a fifth of a tile's time went to asking for what comes from the third cache as fast
  // unasked (docs/performance.md, "A Xeon again").
  if (__builtin_cpu_is("intel")) kernel.far_bytes = kNearBytes;
#endif
  return kernel;
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_FORWARD_INL_H_
