// SPDX-License-Identifier: MIT
// What BackwardUnit has of a tile, for the loops that are timed with it.
// Part of inner_backward.cc; compiled once for every instruction set.
#if defined(VECINA_BENCHMARKS_CPU_INNER_BACKWARD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_BENCHMARKS_CPU_INNER_BACKWARD_TILE_INL_H_
#undef VECINA_BENCHMARKS_CPU_INNER_BACKWARD_TILE_INL_H_
#else
#define VECINA_BENCHMARKS_CPU_INNER_BACKWARD_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "benchmarks/cpu/inner.h"
#include "cpu/backward.h"
#include "cpu/backward_tile-inl.h"
#include "cpu/launch.h"
#include "cpu/packed_keys-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::benchmarks::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace internal::cpu;                 // NOLINT: one namespace of every instruction set
using namespace internal::cpu::HWY_NAMESPACE;  // NOLINT

// float alone: the 16-bit types run the same loops.
using D = hn::ScalableTag<float>;
using Of = BackwardTile<float>;
constexpr int kLanes = Of::kLanes;

// Rows of queries away from the borders, and the runs of keys that they see.
class Tile {
 public:
  explicit Tile(const std::string& line)
      : tensors(line),
        plan(plan_backward(tensors.problem, tensors.backward, backward_kernel(VECINA_F32))),
        memory(plan.scratch.total * sizeof(float)),
        shared(std::max<size_t>(plan.shared_size(), 1) * sizeof(float)),
        scratch(memory.as<float>()),
        keys(plan, 0, scratch),
        pointers(pointers_of(tensors.backward, shared.as<float>())) {
    if (plan.keeps_sums_apart) throw std::invalid_argument("sums are kept apart: " + line);
    // Random numbers for all that a tile holds.
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::generate_n(scratch + plan.scratch.sums, plan.scratch.products - plan.scratch.sums,
                    [&] { return normal(random); });
    set_up_rows();
    set_up_runs();
  }

  const AxisGroup& axis() const { return keys.lane_axis(); }
  bool is_shared() const { return keys.layout() == KeyLayout::shared; }
  int num_keys() const { return std::min(plan.max_slots, axis().window.kernel_size); }
  int num_slots() const {  // keys of all queries of all lanes
    int slots = 0;
    for (const Of::Run& run : runs) slots += run.num_slots();
    return slots;
  }
  float* array(size_t of, int r, int pitch) const {
    return scratch + of + ptrdiff_t{r} * kLanes * pitch;
  }
  float* weights(size_t of, const Of::Run& run, int r) const {
    return array(of, r, plan.weights_pitch) + ptrdiff_t{run.slots[static_cast<size_t>(r)]} * kLanes;
  }
  // Key j of lane 0 of a run, for another lane.
  int key_of(int lane, int j) const { return is_shared() ? j : lane * axis().step + j; }

  const Tensors tensors;
  const BackwardPlan plan;
  const Memory memory, shared;
  float* const scratch;
  const PackedKeys<float> keys;
  const BackwardPointers pointers;
  Of::Rows rows;
  std::vector<Of::Run> runs;

 private:
  void set_up_rows() {
    const AxisGroup& middle = keys.axis(1);
    for (int r = 0; r < kBackwardRows; ++r) {
      Of::Row& row = rows[static_cast<size_t>(r)];
      const int k = is_shared() ? 0 : kBackwardRows + r;  // away from the border
      row.place = {is_shared() ? r * kLanes : 0, k, 0, 0, 0};
      row.num_queries = kLanes;
      row.key_begin = middle.begin(middle.position(k));
      row.key_end = middle.end(middle.position(k));
      row.grad_query = static_cast<float*>(pointers.grad_query) + k * plan.grad_query.token[1] +
                       row.place.x * plan.grad_query.token[2];
      std::fill_n(row.softmax.delta, kLanes, 0.0f);
      std::fill_n(row.softmax.grad_lse, kLanes, 0.0f);
      row.softmax.set_lse(hn::Set(D(), 4.0f), kLanes);
    }
  }

  void set_up_runs() {
    const auto *key = static_cast<const float*>(pointers.key),
               *value = static_cast<const float*>(pointers.value);
    for (int y = rows[0].key_begin; y < rows[kBackwardRows - 1].key_end; ++y) {
      const ptrdiff_t row = keys.row(0, y), token = row * keys.tokens();
      float* packed_keys = scratch + plan.scratch.keys + token * plan.key_pitch;
      float* packed_values = scratch + plan.scratch.values + token * plan.value_pitch;
      float* columns =
          scratch + plan.scratch.transposed_keys + row * keys.transposed_row(plan.head_dim);
      float* value_columns =
          scratch + plan.scratch.transposed_values + row * keys.transposed_row(plan.head_dim_value);
      const auto* keys_y = key + keys.row_offset(plan.key, 0, y);
      const auto* values_y = value + keys.row_offset(plan.value, 0, y);
      keys.copy(keys_y, plan.key, 0, keys.tokens(), plan.head_dim, plan.key_pitch, packed_keys);
      if (is_shared()) {
        keys.copy(values_y, plan.value, 0, keys.tokens(), plan.head_dim_value, plan.value_pitch,
                  packed_values);
        columns = packed_keys;
        value_columns = packed_values;
      } else {
        keys.transpose(keys_y, plan.key, plan.head_dim, columns);
        keys.transpose(values_y, plan.value, plan.head_dim_value, value_columns);
      }
      Of::Run run = {};
      const ptrdiff_t sum = plan.first_sum(keys.box(), 0, y);
      run.keys = packed_keys;
      run.key_sums = scratch + plan.scratch.sums + sum * plan.key_pitch;
      run.value_sums = scratch + plan.scratch.sums + plan.sums_value + sum * plan.value_pitch;
      run.key_columns = columns;
      run.value_columns = value_columns;
      run.count = num_keys();
      run.y = y;
      run.last = kBackwardRows;
      while (y >= rows[static_cast<size_t>(run.first)].key_end) ++run.first;
      while (y < rows[static_cast<size_t>(run.last - 1)].key_begin) --run.last;
      run.first_fresh = std::numeric_limits<int>::max();  // all are added to what is there
      run.is_shared = is_shared();
      run.is_window = true;
      for (int r = run.first; r < run.last; ++r) {
        run.slots[static_cast<size_t>(r)] = rows[static_cast<size_t>(r)].slots;
        rows[static_cast<size_t>(r)].slots += run.count;
      }
      runs.push_back(run);
    }
  }
};

}  // namespace
}  // namespace vecina::benchmarks::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_BENCHMARKS_CPU_INNER_BACKWARD_TILE_INL_H_
