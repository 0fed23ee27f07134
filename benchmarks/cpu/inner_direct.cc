// SPDX-License-Identifier: MIT
// Loops of the direct form: a block of queries away from the borders of one dimension, whose keys
// and values are read where they lie.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "benchmarks/cpu/inner.h"
#include "cpu/launch.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/cpu/inner_direct.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/direct_tile-inl.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::benchmarks::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace internal::cpu;                 // NOLINT: one namespace of every instruction set
using namespace internal::cpu::HWY_NAMESPACE;  // NOLINT

constexpr int kLanes = static_cast<int>(hn::MaxLanes(DirectFloats()));

// What DirectUnit has of a block.
template <typename Element>
struct Block {
  explicit Block(const std::string& line)
      : tensors(line),
        plan(plan_forward(tensors.problem, tensors.forward, forward_kernel(tensors.problem.dtype()),
                          /*enough=*/1)),
        memory(plan.scratch.total * sizeof(float)),
        pointers(pointers_of(tensors.forward)) {
    if (!plan.direct.is_used || !plan.direct.in_place) {
      throw std::invalid_argument("not the direct form in place: " + line);
    }
    auto* scratch = memory.as<float>();
    const AxisGroup& axis = plan.groups[2][0];
    const NaAxis& window = axis.window;
    first_query = plan.direct.block_queries;
    first_key = axis.begin(axis.position(first_query));
    in.num_queries = plan.direct.block_queries;
    in.key_stride = plan.key.token[2];
    in.value_stride = plan.value.token[2];
    in.keys = static_cast<const Element*>(pointers.key) + first_key * in.key_stride;
    in.values = static_cast<const Element*>(pointers.value) + first_key * in.value_stride;
    for (int t = 0; t < in.num_queries; ++t) {
      in.key_offsets[t] = t * in.key_stride;
      in.value_offsets[t] = t * in.value_stride;
    }
    in.key_rows = in.value_rows = reinterpret_cast<int64_t*>(scratch + plan.direct.key_rows);
    in.num_rows = 1;
    in.row_keys = window.kernel_size;
    auto* row_slots = reinterpret_cast<int*>(scratch + plan.direct.row_slots);
    slots = direct_slots(in.row_keys, 1, plan.direct.grouped_rows, kLanes, row_slots);
    in.row_slots = row_slots;
    in.weights = scratch + plan.direct.weights;
    in.weights_pitch = plan.direct.weights_pitch;
    query = static_cast<const Element*>(pointers.query) + first_query * plan.query.token[2];
    output = static_cast<Element*>(pointers.output) + first_query * plan.output.token[2];
  }

  // All keys of all queries.
  void logits() const {
    const auto scale = static_cast<float>(plan.scale * kLog2E);
    for (int j = 0; j < in.row_keys; j += kLanes) {
      const int keys = std::min(kLanes, in.row_keys - j);
      if constexpr (std::is_same_v<Element, bfloat16>) {
        direct_dots(keys, plan.head_dim)(
            in, {query, plan.query.token[2], plan.head_dim, j, 0, in.num_rows, scale});
      } else {
        direct_logits<Element>(keys, /*in_groups=*/false, plan.head_dim)(
            in, {query, plan.query.token[2], plan.head_dim, j, 0, in.num_rows, scale});
      }
    }
  }

  const Tensors tensors;
  const ForwardPlan plan;
  const Memory memory;
  const ForwardPointers pointers;
  DirectBlock<DirectFloats> in = {};
  int slots = 0, first_query = 0, first_key = 0;
  const Element* query;
  Element* output;
};

template <typename Element>
InnerLoop logits(const std::string& line) {
  const auto block = std::make_shared<Block<Element>>(line);
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    const auto& in = block->in;
    for (int t = 0; t < in.num_queries; ++t) {
      for (int j = 0; j < in.row_keys; ++j) {
        const Element* query = block->query + t * block->plan.query.token[2];
        const Element* key = static_cast<const Element*>(in.keys) + (t + j) * in.key_stride;
        double sum = 0.0, magnitude = 0.0;
        for (int k = 0; k < block->plan.head_dim; ++k) {
          const double product = block->plan.scale * kLog2E *
                                 static_cast<double>(to_compute(query[k])) *
                                 static_cast<double>(to_compute(key[k]));
          sum += product;
          magnitude += std::abs(product);
        }
        comparison.add(in.weights[t * in.weights_pitch + j], sum, magnitude);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * block->in.num_queries * block->in.row_keys * block->plan.head_dim;
  return {[=] { block->logits(); }, mistake, work};
}

// Its results are the next run's logits, which changes nothing that takes time.
template <typename Element>
InnerLoop softmax_of_block(const std::string& line) {
  using Softmax = DirectSoftmax<DirectFloats>;
  const auto block = std::make_shared<Block<Element>>(line);
  block->logits();
  const auto& in = block->in;
  const std::vector<float> before(in.weights, in.weights + in.num_queries * in.weights_pitch);
  const auto result = std::make_shared<Softmax>();
  const auto run = [=] {
    direct_softmax(DirectFloats(), block->in, block->slots, /*count=*/0, nullptr, result.get());
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    for (int t = 0; t < block->in.num_queries; ++t) {
      const float* logits = before.data() + t * block->in.weights_pitch;
      const double max = *std::max_element(logits, logits + block->in.row_keys);
      double sum = 0.0;
      for (int j = 0; j < block->in.row_keys; ++j) sum += std::exp2(logits[j] - max);
      comparison.add(result->sums[t], sum, sum);
    }
    return comparison.mistake();
  };
  Work work;
  work.exponentials = 1.0 * in.num_queries * in.row_keys;
  return {run, mistake, work};
}

// With the function that DirectUnit::sum_values() takes for whole windows.
template <typename Element>
InnerLoop values(const std::string& line) {
  const auto block = std::make_shared<Block<Element>>(line);
  const auto softmax = std::make_shared<DirectSoftmax<DirectFloats>>();
  block->logits();
  direct_softmax(DirectFloats(), block->in, block->slots, /*count=*/0, nullptr, softmax.get());
  const ForwardPlan& plan = block->plan;
  const DirectOutput<float, Element> target = {
      softmax->inverse,   nullptr, nullptr, 0, 0, block->output, plan.output.token[2],
      plan.head_dim_value};
  const auto run = [=] {
    static_cast<void>(softmax);  // is kept
    for (int column = 0; column < block->plan.head_dim_value; column += 4 * kLanes) {
      const auto sum = [&](auto* function) {
        function(DirectFloats(), Wide<DirectFloats>(), block->in, target, 0, block->in.num_queries,
                 column);
      };
      if constexpr (kHasWideVectors) {
        sum(rolling_of<2, /*kIsPart=*/false, Element, DirectFloats, Wide<DirectFloats>, Element>(
            block->in.row_keys));
      } else {
        sum(&direct_together<1, 2, 4, /*kIsPart=*/false, Element, DirectFloats, Wide<DirectFloats>,
                             Element>);
      }
    }
  };
  const auto mistake = [=] {
    Comparison comparison(sizeof(Element) == 2 ? 0.004 : tolerance(VECINA_F32));
    const auto& in = block->in;
    for (int t = 0; t < in.num_queries; ++t) {
      for (int c = 0; c < block->plan.head_dim_value; ++c) {
        double sum = 0.0, magnitude = 0.0;
        for (int j = 0; j < in.row_keys; ++j) {
          const Element* value = static_cast<const Element*>(in.values) + (t + j) * in.value_stride;
          const double product = static_cast<double>(in.weights[t * in.weights_pitch + j]) *
                                 static_cast<double>(to_compute(value[c]));
          sum += product;
          magnitude += std::abs(product);
        }
        comparison.add(
            static_cast<double>(to_compute(block->output[t * block->plan.output.token[2] + c])),
            softmax->inverse[t] * sum, softmax->inverse[t] * magnitude);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * block->in.num_queries * block->in.row_keys * plan.head_dim_value;
  return {run, mistake, work};
}

template <typename Element>
void add(int keys, int head_dim, Cases* cases) {
  const auto line = fmt::format("1d 256 kernel_size {} heads 8 head_dim {}", keys, head_dim);
  const auto name = [&](const char* loop, const char* size) {
    return fmt::format("{}/direct/keys:{}/{}:{}", loop, keys, size, head_dim);
  };
  cases->add<Element>(name("logits", "head_dim"), line, &logits<Element>);
  cases->add<Element>(name("values", "head_dim_value"), line, &values<Element>);
  if (head_dim == 32) {
    cases->add<Element>(fmt::format("softmax/direct/keys:{}", keys), line,
                        &softmax_of_block<Element>);
  }
}

std::vector<InnerCase> make_direct_cases() {
  Cases cases([](const internal::Problem& of) {
    return takes_direct_form(of, forward_kernel(of.dtype()));
  });
  add<float>(7, 32, &cases);
  add<float>(7, 64, &cases);
  add<float>(13, 32, &cases);
  // Rows that fill no vectors.
  cases.add<float>("logits/direct/keys:5/head_dim:12", "1d 256 kernel_size 5 heads 8 head_dim 12",
                   &logits<float>);
  if constexpr (kHasWideVectors) {
    if (forward_kernel(VECINA_BF16).has_pair_products) add<bfloat16>(7, 32, &cases);
  }
  return cases.take();
}

}  // namespace
}  // namespace vecina::benchmarks::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::benchmarks {
HWY_EXPORT(make_direct_cases);
std::vector<InnerCase> direct_cases() { return HWY_DYNAMIC_DISPATCH(make_direct_cases)(); }
}  // namespace vecina::benchmarks
#endif  // HWY_ONCE
