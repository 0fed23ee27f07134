// SPDX-License-Identifier: MIT
// What a backend answers where it has nothing of its own.
#include "core/backend.h"

namespace vecina::internal {

std::string e4m3_why_not(const Problem& problem, Pass pass) {
  if (!problem.has_e4m3()) return {};
  return pass == Pass::forward
             ? "query_key_dtype e4m3: only backend cuda on GPUs of compute capability 9.0, and "
               "backend reference"
             : "query_key_dtype e4m3: forward only, neither gradients nor the split form";
}

Status Plan::run(const vecina_forward_args&, void*) const {
  return unsupported("this plan has no forward");
}

Status Plan::run(const vecina_backward_args&, void*) const {
  return unsupported("this plan has no backward");
}

Status Plan::run(const SplitArgs&, void*) const {
  return unsupported("this plan has no split form");
}

Status Plan::measure(const vecina_forward_args&, int, std::vector<double>*) const {
  return unsupported("no clock of its own");
}

Status Plan::measure(const vecina_backward_args&, int, std::vector<double>*) const {
  return unsupported("no clock of its own");
}

Status Plan::measure(const SplitArgs&, int, std::vector<double>*) const {
  return unsupported("no clock of its own");
}

Status Backend::plan(const Problem&, const vecina_backward_args&, std::unique_ptr<Plan>*) {
  return unsupported("no backward");
}

Status Backend::plan(const Problem&, const SplitArgs&, std::unique_ptr<Plan>*) {
  return unsupported("no split form");
}

Status Backend::merge(const MergeArgs&, void*) { return unsupported("no merge"); }

Status Backend::merge_backward(const MergeBackwardArgs&, void*) {
  return unsupported("no backward of merge");
}

namespace {

Status no_kernels() { return unsupported("its kernels are not compiled at run time"); }

Status nothing_to_tune() { return unsupported("its plans follow rules; nothing is measured"); }

}  // namespace

Status Backend::list_kernels(std::string*) const { return no_kernels(); }

Status Backend::clear_kernels(std::string*) const { return no_kernels(); }

Status Backend::build_kernels(int, const Problem&, const KernelParts&, std::string*) const {
  return no_kernels();
}

Status Backend::tune(const Problem&, int, std::string*) { return nothing_to_tune(); }

Status Backend::clear_tuned(std::string*) const { return nothing_to_tune(); }

}  // namespace vecina::internal
