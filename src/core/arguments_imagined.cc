// SPDX-License-Identifier: MIT
// Arguments of calls that have no data, for plans.
#include <algorithm>

#include "core/arguments.h"
#include "core/arguments_table.h"

namespace vecina::internal {
namespace {

// Aligned for everything, far from both ends of the address space, never followed.
constexpr uintptr_t kImaginedAddress = uintptr_t{1} << (8 * sizeof(uintptr_t) - 24);

// Lets the tensors of a list, which belong to arguments that may be written, be what is expected.
void imagine(const std::vector<Expected>& list, vecina_device device) {
  for (const Expected& expected : list) {
    auto& tensor = const_cast<vecina_tensor&>(*expected.tensor);
    tensor.data = reinterpret_cast<void*>(kImaginedAddress);
    tensor.dtype = expected.dtype;
    tensor.device = device;
    tensor.ndim = expected.shape.size();
    std::copy(expected.shape.begin(), expected.shape.end(), tensor.shape);
    int64_t stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
      tensor.strides[d] = stride;
      stride *= tensor.shape[d];
    }
  }
}

template <typename Args>
void imagine(const Problem& problem, vecina_device device, Args* imagined) {
  Args& args = *imagined;
  args = {};
  args.struct_size = sizeof(args);
  std::vector<Expected> list;
  const int64_t samples = problem.num_samples();
  int64_t query_tokens = samples;
  for (int a = 0; a < problem.rank(); ++a) query_tokens *= problem.axis(a).query_extent;
  const Totals totals = {samples * problem.num_keys(), query_tokens,
                         samples * problem.num_queries()};
  // Nothing is given that the problem lacks, so that nothing can be refused.
  static_cast<void>(expected_tensors(problem, args, totals, &list).ok());
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) {
    const Shape shape = {samples, problem.rank()};
    list.push_back({"lengths", &args.lengths, VECINA_I32, shape});
    if (problem.is_attention()) {
      list.push_back({"query_lengths", &args.query_lengths, VECINA_I32, shape});
    }
  }
  imagine(list, device);
}

}  // namespace

void imagine_arguments(const Problem& problem, vecina_device device, vecina_forward_args* args) {
  imagine(problem, device, args);
}
void imagine_arguments(const Problem& problem, vecina_device device, vecina_backward_args* args) {
  imagine(problem, device, args);
}
void imagine_arguments(const Problem& problem, vecina_device device, SplitArgs* args) {
  args->c = {};
  args->c.struct_size = sizeof(args->c);
  std::vector<Expected> list;
  static_cast<void>(expected_tensors(problem, *args, Totals(), &list).ok());
  imagine(list, device);
}

}  // namespace vecina::internal
