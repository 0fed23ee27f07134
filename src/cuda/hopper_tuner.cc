// SPDX-License-Identifier: MIT
#include "cuda/hopper_tuner.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <thread>

#include "core/arguments.h"
#include "core/tensor.h"
#include "cuda/hopper_plan.h"
#include "cuda/parallel.h"
#include "cuda/staging.h"
#include "vecina/tensor.hpp"

namespace vecina::internal::cuda {
namespace {

using nlohmann::ordered_json;
using Sequence = LaunchSequence<vecina_forward_args>;

// Of a measurement. One alone may be 8% off (on an H200, whose clock swings under load): what is
// near the fastest is measured again, longer and in turns.
constexpr double kWarmupSeconds = 0.5, kSeconds = 0.25, kFinalSeconds = 0.5;
constexpr int kFinalTurns = 3;
constexpr size_t kFinalists = 5;
constexpr size_t kVaried = 3;                        // cuts whose variants are measured
constexpr size_t kRandomElements = (1u << 20) + 24;  // then the same again: rows differ for long

// Products of zeros take less power than those of numbers, and the clock follows the power.
template <typename Element>
Status fill_with_numbers(const vecina_tensor& tensor) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<Element> block(kRandomElements);
  for (Element& element : block) element = Element(normal(random));
  const auto elements = static_cast<size_t>(num_elements(tensor));
  const auto begin = reinterpret_cast<DevicePointer>(address(tensor));
  for (size_t at = 0; at < elements; at += block.size()) {
    VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuMemcpyHtoD_v2,
                                (begin + at * sizeof(Element), block.data(),
                                 std::min(block.size(), elements - at) * sizeof(Element)));
  }
  return {};
}
Status fill_with_numbers(const vecina_tensor& tensor) {
  return tensor.dtype == VECINA_E4M3   ? fill_with_numbers<float8_e4m3>(tensor)
         : tensor.dtype == VECINA_BF16 ? fill_with_numbers<bfloat16>(tensor)
                                       : fill_with_numbers<float16>(tensor);
}

struct Candidate {
  HopperChoice choice;
  bool is_planned = false;
  Sequence sequence;
  double first_us = 0.0, sum_us = 0.0;
  int turns = 0;

  double measured_us() const { return turns > 0 ? sum_us / turns : first_us; }
};

class Tuner {
 public:
  Tuner(const Problem& problem, std::shared_ptr<const DeviceState> state)
      : problem_(problem), state_(std::move(state)), facts_(state_->facts()) {}

  Status run(int count) {
    const Device::Current current(*state_->device);
    VECINA_RETURN_IF_ERROR(current.status());
    VECINA_RETURN_IF_ERROR(make_tensors());
    VECINA_RETURN_IF_ERROR(add(rank_hopper_tilings(problem_, facts_, count)));
    if (candidates_.empty()) return unsupported("no tiles fit into shared memory");
    candidates_.front().is_planned = true;
    double warm_us = 0.0;
    VECINA_RETURN_IF_ERROR(measure(candidates_.front(), kWarmupSeconds, &warm_us));
    VECINA_RETURN_IF_ERROR(measure_from(0));
    const size_t planned = candidates_.size();
    std::vector<HopperChoice> variants;
    for (const size_t i : fastest(kVaried)) {
      for (const HopperConfig& config : hopper_variants(candidates_[i].choice.config, facts_)) {
        variants.push_back(hopper_choice(problem_, facts_, config));
      }
    }
    VECINA_RETURN_IF_ERROR(add(variants));
    VECINA_RETURN_IF_ERROR(measure_from(planned));
    std::vector<size_t> finalists = fastest(kFinalists);
    if (std::find(finalists.begin(), finalists.end(), 0) == finalists.end()) {
      finalists.push_back(0);  // the planned one, to compare with
    }
    for (int turn = 0; turn < kFinalTurns; ++turn) {
      for (const size_t i : finalists) {
        Candidate& candidate = candidates_[i];
        double us = 0.0;
        VECINA_RETURN_IF_ERROR(measure(candidate, kFinalSeconds, &us));
        candidate.sum_us += us;
        ++candidate.turns;
      }
    }
    kept_ = *std::min_element(finalists.begin(), finalists.end(), [&](size_t a, size_t b) {
      return candidates_[a].measured_us() < candidates_[b].measured_us();
    });
    return {};
  }

  TunedCut kept() const {
    return {candidates_[kept_].choice.config, candidates_[kept_].measured_us() / 1000.0};
  }

  ordered_json describe() const {
    ordered_json rows = ordered_json::array();
    for (size_t i = 0; i < candidates_.size(); ++i) {
      const Candidate& candidate = candidates_[i];
      const Kernel& kernel = candidate.sequence.kernels().front();
      ordered_json row =
          ordered_json::parse(fmt::format("{{{}}}", describe_cut(candidate.choice.config)));
      row["predicted_ms"] = candidate.choice.predicted_ms;
      row["measured_ms"] = candidate.measured_us() / 1000.0;
      row["measurements"] = std::max(candidate.turns, 1);
      row["registers"] = kernel.resources.registers;
      row["spill_bytes"] = kernel.resources.spill_bytes;
      row["is_planned"] = candidate.is_planned;
      row["is_kept"] = i == kept_;
      rows.push_back(std::move(row));
    }
    return rows;
  }

 private:
  Status make_tensors() {
    vecina_forward_args imagined;
    imagine_arguments(problem_, VECINA_CPU, &imagined);
    imagined.head_scale = {};  // the kernels are the same with it
    VECINA_RETURN_IF_ERROR(
        StagedCall<vecina_forward_args>::make(*state_->device, imagined, &call_));
    NamedTensor list[kMaxTensors];
    const int count = list_tensors(call_.device_args(), list);
    for (int i = 0; i < count; ++i) {
      if (given(*list[i].tensor) && !list[i].is_output) {
        VECINA_RETURN_IF_ERROR(fill_with_numbers(*list[i].tensor));
      }
    }
    return {};
  }

  // Compiled at the same time, as far as there are cores.
  Status add(const std::vector<HopperChoice>& choices) {
    const size_t first = candidates_.size();
    candidates_.resize(first + choices.size());
    std::vector<Status> statuses(choices.size());
    run_parallel(choices.size(), std::thread::hardware_concurrency(), [&](size_t i) {
      Candidate& candidate = candidates_[first + i];
      candidate.choice = choices[i];
      std::vector<ForwardLaunch> launches;
      statuses[i] = hopper_launch(problem_, call_.device_args(), facts_, choices[i], &launches);
      if (!statuses[i].ok()) return;
      statuses[i] = Sequence::make(state_, std::move(launches), &candidate.sequence);
    });
    for (const Status& status : statuses) VECINA_RETURN_IF_ERROR(status);
    return {};
  }

  Status measure(const Candidate& candidate, double seconds, double* us) const {
    return candidate.sequence.measure_steady(call_.device_args(), seconds, us);
  }
  Status measure_from(size_t first) {
    for (size_t i = first; i < candidates_.size(); ++i) {
      VECINA_RETURN_IF_ERROR(measure(candidates_[i], kSeconds, &candidates_[i].first_us));
    }
    return {};
  }

  std::vector<size_t> fastest(size_t count) const {
    std::vector<size_t> order(candidates_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return candidates_[a].measured_us() < candidates_[b].measured_us();
    });
    order.resize(std::min(count, order.size()));
    return order;
  }

  const Problem& problem_;
  const std::shared_ptr<const DeviceState> state_;
  const DeviceFacts facts_;
  StagedCall<vecina_forward_args> call_;
  std::vector<Candidate> candidates_;
  size_t kept_ = 0;
};

}  // namespace

Status tune_hopper(const Problem& problem, int count, std::shared_ptr<const DeviceState> state,
                   ordered_json* json) {
  const std::string why = hopper_why_not(problem, Pass::forward, state->facts());
  if (!why.empty()) {
    return unsupported(fmt::format(
        "only Hopper's kernels have cuts to measure, and they do not take this problem: {}", why));
  }
  if (problem.num_samples() == 0) return unsupported("no samples leave nothing to measure");
  // Plans with lengths take the cut of as many samples that are all as long as the longest.
  const Problem measured = with_longest_samples(problem);
  Tuner tuner(measured, state);
  VECINA_RETURN_IF_ERROR(tuner.run(count));
  state->tuned->write(measured, tuner.kept());
  *json = {{"problem", measured.line()},
           {"device", state->device->name()},
           {"file", state->tuned->file_name(measured)},
           {"cuts", tuner.describe()}};
  return {};
}

}  // namespace vecina::internal::cuda
