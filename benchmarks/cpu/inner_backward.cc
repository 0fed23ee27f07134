// SPDX-License-Identifier: MIT
// Loops of the backward pass: the steps of a tile, with the plan, the packed keys and the scratch
// of a problem's first unit, and sums of rows by themselves.
#include <algorithm>
#include <array>
#include <memory>
#include <random>

#include "benchmarks/cpu/inner.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/cpu/inner_backward.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "benchmarks/cpu/inner_backward_tile-inl.h"
#include "cpu/key_gradients-inl.h"
#include "cpu/key_sums-inl.h"
#include "cpu/query_sums-inl.h"
#include "cpu/row_softmax-inl.h"
#include "cpu/sums-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::benchmarks::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace internal::cpu;                 // NOLINT: one namespace of every instruction set
using namespace internal::cpu::HWY_NAMESPACE;  // NOLINT

InnerLoop loop_of(std::shared_ptr<Tile> tile, std::function<void()> run,
                  std::function<void(Comparison*)> compare) {
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    compare(&comparison);
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * tile->num_slots() * kLanes * tile->plan.head_dim;
  return {std::move(run), mistake, work};
}

// Products of grad_output and value, as BackwardUnit::products() has them.
InnerLoop products(const std::string& line) {
  const auto tile = std::make_shared<Tile>(line);
  const int pitch = tile->plan.value_pitch;
  const auto run = [=] {
    const bool is_shared = tile->is_shared();
    using Shared = LogitsTable<KeyLayout::shared, D>;
    using Shifted = LogitsTable<KeyLayout::shifted, D>;
    LogitsArguments<float> arguments = {};
    arguments.head_dim = tile->plan.head_dim_value;
    arguments.query_pitch = ptrdiff_t{kLanes} * pitch;
    arguments.key_offsets = is_shared ? nullptr : tile->keys.key_offsets();
    arguments.key_pitch = pitch;
    arguments.key_step = is_shared ? 1 : tile->keys.pitch();
    arguments.rows = 1;
    for (const Of::Run& of : tile->runs) {
      arguments.keys = of.value_columns;
      for (int r = of.first, taken; r < of.last; r += taken) {
        taken = Shared::take_rows(of.last - r);
        arguments.queries = tile->array(tile->plan.scratch.transposed_grad_outputs, r, pitch);
        for (int i = 0; i < taken; ++i) {
          arguments.weights[i] = tile->weights(tile->plan.scratch.grad_logits, of, r + i);
        }
        (is_shared ? &Shared::run : &Shifted::run)(taken, /*twins=*/1, of.count, arguments);
      }
    }
  };
  const auto compare = [=](Comparison* comparison) {
    for (const Of::Run& of : tile->runs) {
      const float* values = static_cast<const float*>(tile->pointers.value) +
                            tile->keys.row_offset(tile->plan.value, 0, of.y);
      for (int r = of.first; r < of.last; ++r) {
        const float* gradients = tile->array(tile->plan.scratch.transposed_grad_outputs, r, pitch);
        for (int i = 0; i < of.count * kLanes; ++i) {
          const int lane = i % kLanes, j = tile->key_of(lane, i / kLanes);
          const int key = packed_key(tile->axis(), tile->keys.range(2).begin + j);
          double sum = 0.0, magnitude = 0.0;
          for (int k = 0; k < tile->plan.head_dim_value; ++k) {
            const double product = static_cast<double>(gradients[k * kLanes + lane]) *
                                   values[key * tile->plan.value.token[2] + k];
            sum += product;
            magnitude += std::abs(product);
          }
          comparison->add(tile->weights(tile->plan.scratch.grad_logits, of, r)[i], sum, magnitude);
        }
      }
    }
  };
  return loop_of(tile, run, compare);
}

// What a tile adds to the sums of its keys: one run after the other.
InnerLoop key_sums(const std::string& line) {
  const auto tile = std::make_shared<Tile>(line);
  const int pitch = tile->plan.key_pitch;
  const float* sums = tile->scratch + tile->plan.scratch.sums;
  const std::vector<float> before(sums, sums + tile->plan.sums_size);
  const auto run = [=] {
    const KeySums<float> sums_of_keys(tile->plan, tile->axis(), tile->scratch);
    for (const Of::Run& of : tile->runs) {
      sums_of_keys.add(of, tile->rows, tile->plan.scratch.queries, tile->plan.scratch.grad_logits,
                       pitch, of.key_sums);
    }
  };
  const auto compare = [=](Comparison* comparison) {
    for (const Of::Run& of : tile->runs) {
      const int tokens = tile->key_of(kLanes - 1, of.count - 1) + 1;
      for (int c = 0; c < tokens * pitch; ++c) {
        double sum = before[static_cast<size_t>(of.key_sums - sums) + static_cast<size_t>(c)];
        double magnitude = std::abs(sum);
        for (int r = of.first; r < of.last; ++r) {
          const float* query = tile->array(tile->plan.scratch.queries, r, pitch) + c % pitch;
          const float* gradients = tile->weights(tile->plan.scratch.grad_logits, of, r);
          for (int i = 0; i < of.count * kLanes; ++i) {
            if (tile->key_of(i % kLanes, i / kLanes) != c / pitch) continue;
            const double product = static_cast<double>(gradients[i]) * query[i % kLanes * pitch];
            sum += product;
            magnitude += std::abs(product);
          }
        }
        comparison->add(of.key_sums[c], sum, magnitude);
      }
    }
  };
  return loop_of(tile, run, compare);
}

// The gradients of a tile's queries, one row after the other.
InnerLoop query_sums(const std::string& line) {
  const auto tile = std::make_shared<Tile>(line);
  const int pitch = tile->plan.key_pitch;
  const QuerySums<float> sums(tile->plan, tile->axis(), tile->scratch, /*is_streamed=*/false);
  for (Of::Row& row : tile->rows) row.is_written_at_once = sums.can_write(row, /*is_whole=*/true);
  const auto run = [=] {
    for (int r = 0; r < kBackwardRows; ++r) {
      Of::Row& row = tile->rows[static_cast<size_t>(r)];
      row.has_sums = false;
      sums.add(tile->runs.data(), static_cast<int>(tile->runs.size()), &row, r);
      sums.write(&row, r);
    }
  };
  const auto compare = [=](Comparison* comparison) {
    for (int r = 0; r < kBackwardRows; ++r) {
      for (int i = 0; i < kLanes * tile->plan.head_dim; ++i) {
        const int lane = i / tile->plan.head_dim, c = i % tile->plan.head_dim;
        double sum = 0.0, magnitude = 0.0;
        for (const Of::Run& of : tile->runs) {
          if (!of.is_seen_by(r)) continue;
          const float* gradients = tile->weights(tile->plan.scratch.grad_logits, of, r);
          for (int j = 0; j < of.count; ++j) {
            const double product = tile->plan.scale * gradients[j * kLanes + lane] *
                                   of.keys[tile->key_of(lane, j) * pitch + c];
            sum += product;
            magnitude += std::abs(product);
          }
        }
        const Of::Row& row = tile->rows[static_cast<size_t>(r)];
        comparison->add(row.grad_query[lane * tile->plan.grad_query.token[2] + c], sum, magnitude);
      }
    }
  };
  return loop_of(tile, run, compare);
}

// From logits to the gradients of logits, a row of the tile. Its results are the next run's logits
// and products, which changes nothing that takes time.
InnerLoop softmax_of_row(const std::string& line) {
  const auto tile = std::make_shared<Tile>(line);
  const Of::Row& row = tile->rows[0];
  const int size = row.slots * kLanes;
  float* const logits = tile->array(tile->plan.scratch.probabilities, 0, tile->plan.weights_pitch);
  float* const gradients = tile->array(tile->plan.scratch.grad_logits, 0, tile->plan.weights_pitch);
  const std::vector<float> logits_before(logits, logits + size);
  const std::vector<float> products_before(gradients, gradients + size);
  const auto run = [=]() HWY_ATTR {
    const RowSoftmax<D>& softmax = tile->rows[0].softmax;
    const auto sums = softmax.exponentiate(size, logits, gradients);
    softmax.differentiate(size, /*is_whole=*/true, sums, logits, gradients);
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    for (int lane = 0; lane < kLanes; ++lane) {
      double sum = 0.0, mean = 0.0, most = 0.0;
      for (int i = lane; i < size; i += kLanes) {
        const auto at = static_cast<size_t>(i);
        const double weight = std::exp2(static_cast<double>(logits_before[at]));
        sum += weight;
        mean += weight * products_before[at];
        most = std::max(most, std::abs(static_cast<double>(products_before[at])));
      }
      mean /= sum;
      for (int i = lane; i < size; i += kLanes) {
        const auto at = static_cast<size_t>(i);
        const double probability = std::exp2(static_cast<double>(logits_before[at])) / sum;
        comparison.add(logits[i], probability, probability);
        comparison.add(gradients[i], probability * (products_before[at] - mean),
                       probability * most);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.exponentials = size;
  return {run, mistake, work};
}

// The gradients of a row of keys and of values, out of their sums.
InnerLoop key_gradients(const std::string& line) {
  const auto tile = std::make_shared<Tile>(line);
  float* const sums = tile->scratch + tile->plan.scratch.sums;
  const std::vector<float> before(sums, sums + tile->plan.sums_size);
  const int y = tile->runs[0].y, extent = tile->axis().window.extent;
  const auto run = [=] {
    const KeyGradients<float> gradients(tile->plan, tile->pointers, /*head_index=*/0);
    gradients.write_slice({0, 0, y, 0, extent}, sums);
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    const auto compare = [&](const void* written, const Strides& strides, size_t first, int pitch,
                             int size, double scale) {
      const auto* gradients =
          static_cast<const float*>(written) + tile->keys.row_offset(strides, 0, y);
      for (int i = 0; i < extent * size; ++i) {
        double sum = 0.0, magnitude = 0.0;
        for (int token = 0; token < tile->keys.tokens(); ++token) {
          if (packed_key(tile->axis(), tile->keys.range(2).begin + token) != i / size) continue;
          const double part = scale * before[first + static_cast<size_t>(token * pitch + i % size)];
          sum += part;
          magnitude += std::abs(part);
        }
        comparison.add(gradients[i / size * strides.token[2] + i % size], sum, magnitude);
      }
    };
    const BackwardPlan& plan = tile->plan;
    const auto row = static_cast<size_t>(plan.first_sum(tile->keys.box(), 0, y));
    compare(tile->pointers.grad_key, plan.grad_key, row * static_cast<size_t>(plan.key_pitch),
            plan.key_pitch, plan.head_dim, plan.scale);
    compare(tile->pointers.grad_value, plan.grad_value,
            plan.sums_value + row * static_cast<size_t>(plan.value_pitch), plan.value_pitch,
            plan.head_dim_value, 1.0);
    return comparison.mistake();
  };
  Work work;
  work.bytes = 2.0 * extent * (tile->plan.head_dim + tile->plan.head_dim_value) * sizeof(float);
  return {run, mistake, work};
}

enum class Form { stairs, level, single };

// One call of RowSums, as large as a tile's: rows of eight rows of queries into the sums of as many
// keys as one call takes.
InnerLoop row_sums(Form form, int size) {
  using Sums = RowSums<D>;
  constexpr int kSegments = kBackwardRows, kKeys = 7;
  struct Arrays {
    explicit Arrays(int of) : memory(sizeof(float) * static_cast<size_t>(total(of))) {}
    static int total(int of) {
      return (kSegments * (kLanes + kKeys) + 8) * of + 8 * kLanes * kKeys;
    }
    Memory memory;
    std::array<Segment<float>, kSegments> segments;
    Walk walk;
  };
  const auto arrays = std::make_shared<Arrays>(size);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  auto* const memory = arrays->memory.as<float>();
  std::generate_n(memory, Arrays::total(size), [&] { return normal(random); });
  const int sums = form == Form::single ? 1 : Sums::most_in_stairs(kKeys);
  const int count = form == Form::stairs ? kKeys : kLanes;
  float* const to = memory;
  float* const rows = to + 8 * size;
  for (int s = 0; s < kSegments; ++s) {
    arrays->segments[static_cast<size_t>(s)] = {
        rows + s * (kLanes + kKeys) * size,
        rows + kSegments * (kLanes + kKeys) * size + s * kLanes * kKeys, count};
  }
  Walk& walk = arrays->walk;
  walk.row_step = size;
  walk.weight_step = 1;
  walk.starts = true;  // so that runs have the same results
  // The first weight of stairs is that of the last key: it is one lane further and one key back
  // from row to row.
  if (form == Form::stairs) walk.weight_offset = ptrdiff_t{kKeys - 1} * kLanes;
  walk.end = kKeys + sums - 1;
  const auto run = [=] {
    const Segment<float>* segments = arrays->segments.data();
    if (form == Form::stairs) {
      Sums::stairs(sums, Weights::of_keys, segments, kSegments, arrays->walk, size, to, size);
    } else if (form == Form::level) {
      Sums::level(sums, Weights::of_keys, segments, kSegments, arrays->walk, size, to, size);
    } else {
      Sums::single(segments, kSegments, arrays->walk, size, to);
    }
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    for (int i = 0; i < sums * size; ++i) {
      const int q = i / size;
      double sum = 0.0, magnitude = 0.0;
      for (const Segment<float>& segment : arrays->segments) {
        for (int n = 0; n < count; ++n) {
          const int row = form == Form::stairs ? q + n : n;
          const ptrdiff_t weight = form == Form::stairs
                                       ? arrays->walk.weight_offset + q + n - n * kLanes
                                       : ptrdiff_t{q} * kLanes + n;
          const double product =
              static_cast<double>(segment.rows[row * size + i % size]) * segment.weights[weight];
          sum += product;
          magnitude += std::abs(product);
        }
      }
      comparison.add(to[i], sum, magnitude);
    }
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * kSegments * sums * count * size;
  return {run, mistake, work};
}

std::vector<InnerCase> make_backward_cases() {
  Cases cases;
  // So many rows that one unit has them all with head_dim 128, too.
  const auto plane = [](int head_dim) {
    return fmt::format("2d 24x32 kernel_size 7 heads 4 head_dim {}", head_dim);
  };
  const auto dense = [](int head_dim) {
    return fmt::format("2d 16x16 kernel_size 16 heads 4 head_dim {}", head_dim);
  };
  const auto add = [&](const char* name, const auto& loop) {
    for (const int head_dim : {32, 64, 128}) {
      cases.add<float>(fmt::format("backward/{}/keys:7/head_dim:{}", name, head_dim),
                       plane(head_dim), loop);
    }
    cases.add<float>(fmt::format("backward/{}/shared/keys:256/head_dim:32", name), dense(32), loop);
  };
  add("products", &products);
  add("key_sums", &key_sums);
  add("query_sums", &query_sums);
  cases.add<float>("backward/softmax/keys:49", plane(32), &softmax_of_row);
  for (const int head_dim : {32, 64, 128}) {
    cases.add<float>(fmt::format("backward/key_gradients/head_dim:{}", head_dim), plane(head_dim),
                     &key_gradients);
  }
  for (const int size : {32, 64, 128}) {
    for (const auto& [form, name] :
         {std::pair{Form::stairs, "stairs"}, {Form::level, "level"}, {Form::single, "single"}}) {
      cases.add<float>(fmt::format("row_sums/{}/head_dim:{}", name, size), "",
                       [form = form, size](const std::string&) { return row_sums(form, size); });
    }
  }
  return cases.take();
}

}  // namespace
}  // namespace vecina::benchmarks::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::benchmarks {
HWY_EXPORT(make_backward_cases);
std::vector<InnerCase> backward_cases() { return HWY_DYNAMIC_DISPATCH(make_backward_cases)(); }
}  // namespace vecina::benchmarks
#endif  // HWY_ONCE
