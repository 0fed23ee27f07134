// SPDX-License-Identifier: MIT
// The checks walk the table of a call's expected tensors.
#include "core/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "core/arguments_table.h"
#include "core/tensor.h"

namespace vecina::internal {

std::string describe(const vecina_tensor& tensor) {
  const int ndim = std::clamp(tensor.ndim, 0, 6);
  return fmt::format("[{}] {}", fmt::join(tensor.shape, tensor.shape + ndim, ", "),
                     dtype_name(tensor.dtype));
}

namespace {

constexpr int64_t kAlignment = 16;              // what plans remember of a pointer
constexpr uintptr_t kWorkspaceAlignment = 256;  // vecina.h

// With every large stride a multiple of `period`, a tensor touches only the bytes
// [offset, offset + width) modulo the period. Returns 0 if that does not hold.
int64_t width_within(const vecina_tensor& tensor, int64_t period) {
  const int64_t bytes = dtype_bytes(tensor.dtype);
  int64_t width = bytes;
  for (int d = 0; d < tensor.ndim; ++d) {
    const int64_t stride = tensor.strides[d] * bytes;
    if (tensor.shape[d] <= 1 || stride % period == 0) continue;
    if (stride < 0) return 0;
    width += (tensor.shape[d] - 1) * stride;
  }
  return width <= period ? width : 0;
}

// Views of one packed buffer (query, key and value side by side in each token) interleave without
// sharing a byte: their residues modulo a common stride are disjoint.
bool interleave(const vecina_tensor& a, const vecina_tensor& b) {
  for (const vecina_tensor* tensor : {&a, &b}) {
    for (int d = 0; d < tensor->ndim; ++d) {
      const int64_t period = std::abs(tensor->strides[d] * dtype_bytes(tensor->dtype));
      if (period == 0 || tensor->shape[d] <= 1) continue;
      const int64_t width_a = width_within(a, period), width_b = width_within(b, period);
      if (width_a == 0 || width_b == 0) continue;
      int64_t gap = (address(b) - address(a)) % period;  // from a's first byte to b's
      if (gap < 0) gap += period;
      if (gap >= width_a && gap + width_b <= period) return true;
    }
  }
  return false;
}

bool share_memory(const vecina_tensor& a, const vecina_tensor& b) {
  return byte_range(a).overlaps(byte_range(b)) && !interleave(a, b);
}

// True if no two elements share an address: sorted by stride, each dimension steps over the
// smaller ones.
bool is_injective(const vecina_tensor& tensor) {
  int order[kMaxDims] = {};  // dimensions of more than one element, smallest stride first
  int count = 0;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.shape[d] == 0) return true;
    if (tensor.shape[d] == 1) continue;
    int at = count++;
    for (; at > 0 && std::abs(tensor.strides[order[at - 1]]) > std::abs(tensor.strides[d]); --at) {
      order[at] = order[at - 1];
    }
    order[at] = d;
  }
  int64_t reach = 1;
  for (int i = 0; i < count; ++i) {
    const int64_t stride = std::abs(tensor.strides[order[i]]);
    if (stride < reach) return false;
    reach += stride * (tensor.shape[order[i]] - 1);
  }
  return true;
}

bool fits_int64(const vecina_tensor& tensor) {
  double reach = 0.0;
  for (int d = 0; d < tensor.ndim; ++d) {
    reach +=
        std::abs(static_cast<double>(tensor.strides[d])) * static_cast<double>(tensor.shape[d]);
  }
  return reach * 8.0 < 0x1p60;
}

Status check_tensor(const Expected& expected) {
  const vecina_tensor& tensor = *expected.tensor;
  const char* name = expected.name;
  const bool is_empty =
      std::find(expected.shape.begin(), expected.shape.end(), 0) != expected.shape.end();
  if (!given(tensor) && !is_empty) {
    return invalid(fmt::format("{} is not given (data is NULL); expected [{}] {}.", name,
                               fmt::join(expected.shape, ", "), dtype_name(expected.dtype)));
  }
  if (tensor.ndim != expected.shape.size() ||
      !std::equal(expected.shape.begin(), expected.shape.end(), tensor.shape)) {
    return invalid(fmt::format("{} has shape {}; the problem needs [{}].", name, describe(tensor),
                               fmt::join(expected.shape, ", ")));
  }
  if (tensor.dtype != expected.dtype) {
    return invalid(fmt::format("{} is {}; the problem needs {}.", name, dtype_name(tensor.dtype),
                               dtype_name(expected.dtype)));
  }
  if (tensor.device < VECINA_CPU || tensor.device > VECINA_METAL) {
    return invalid(fmt::format("{} is on device {}, which is unknown.", name, tensor.device));
  }
  const int last = tensor.ndim - 1;
  // Of a tensor without elements any: PyTorch's have 0 where others have 1.
  if (!is_empty && tensor.shape[last] > 1 && tensor.strides[last] != 1) {
    return invalid(fmt::format(
        "{} has stride {} in its last dimension; it must be 1 (other dimensions are free).", name,
        tensor.strides[last]));
  }
  if (!fits_int64(tensor)) {
    return invalid(fmt::format("{} has strides [{}] that reach beyond 2^60 bytes.", name,
                               fmt::join(tensor.strides, tensor.strides + tensor.ndim, ", ")));
  }
  if (reinterpret_cast<uintptr_t>(address(tensor)) %
          static_cast<uintptr_t>(dtype_bytes(tensor.dtype)) !=
      0) {
    return invalid(fmt::format("{} starts at an address that is not a multiple of its {} bytes.",
                               name, dtype_bytes(tensor.dtype)));
  }
  if (expected.is_output && !is_injective(tensor)) {
    return invalid(fmt::format(
        "{} is written, but with strides [{}] its elements overlap. Give it memory of its own.",
        name, fmt::join(tensor.strides, tensor.strides + tensor.ndim, ", ")));
  }
  return {};
}

template <typename List>
Status check_overlap(const List& list, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (!list[i].is_output || !given(*list[i].tensor)) continue;
    for (size_t j = 0; j < count; ++j) {
      if (j == i || !given(*list[j].tensor) || (list[j].is_output && j < i)) continue;
      if (share_memory(*list[i].tensor, *list[j].tensor)) {
        return invalid(
            fmt::format("{} is written, but shares memory with {}. Give it memory of its own.",
                        list[i].name, list[j].name));
      }
    }
  }
  return {};
}

Status check_list(const std::vector<Expected>& list) {
  const vecina_tensor* first = nullptr;
  const char* first_name = "";
  for (const Expected& expected : list) {
    if (expected.is_optional && !given(*expected.tensor)) continue;
    VECINA_RETURN_IF_ERROR(check_tensor(expected));
    const vecina_tensor& tensor = *expected.tensor;
    if (first == nullptr) {
      first = &tensor;
      first_name = expected.name;
    } else if (tensor.device != first->device || tensor.device_index != first->device_index) {
      return invalid(fmt::format("{} is on device {}:{}, but {} on {}:{}; all must be on one.",
                                 expected.name, tensor.device, tensor.device_index, first_name,
                                 first->device, first->device_index));
    }
  }
  return check_overlap(list, list.size());
}

// Whether byte offsets into the problem's tensors of so many tokens fit int64 with room for sums.
bool can_address(const Problem& problem, int64_t tokens) {
  const int head_dim = std::max(problem.head_dim(), problem.head_dim_value());
  return 8.0 * static_cast<double>(tokens) * problem.heads() * head_dim <= 0x1p60;
}

// Each sample's extents fit the problem and its window; returns the tokens of all samples.
Status check_lengths(const Problem& problem, const char* name, const vecina_tensor& lengths,
                     bool of_queries, bool of_both, int64_t* tokens, int64_t* queries) {
  const int64_t samples = lengths.shape[0];
  *tokens = *queries = 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    int64_t sample_tokens = 1, sample_queries = 1;
    for (int a = 0; a < problem.rank(); ++a) {
      const Axis& axis = problem.axis(a);
      const int64_t extent = of_both      ? std::min(axis.extent, axis.query_extent)
                             : of_queries ? axis.query_extent
                                          : axis.extent;
      const int64_t least = problem.is_attention() ? 0 : axis.kernel_size * axis.dilation;
      const int64_t length = length_at(lengths, sample, a);
      if (length < 0 || length > extent) {
        return invalid(fmt::format("{}[{}, {}] is {}; it must be within 0 and extent {}.", name,
                                   sample, a, length, extent));
      }
      if (length != 0 && length < least) {
        return invalid(fmt::format(
            "{}[{}, {}] is {}, smaller than kernel_size {} x dilation {} = {}. Pad the sample or "
            "use a smaller kernel_size.",
            name, sample, a, length, axis.kernel_size, axis.dilation, least));
      }
      sample_tokens *= length;
      sample_queries *= (length + axis.output_stride - 1) / axis.output_stride;
    }
    // check_products has bounded what one sample adds, so that no sum up to here overflows.
    *tokens += sample_tokens;
    *queries += sample_queries;
    if (!can_address(problem, std::max(*tokens, *queries))) {
      return invalid(fmt::format(
          "{} add up to {} tokens up to sample {}; the tensors of so many hold more than 2^60 "
          "bytes.",
          name, *tokens, sample));
    }
  }
  return {};
}

// Where lengths are not read, packed tensors say what they add up to.
template <typename Args>
Totals totals_of_tensors(const Problem& problem, const Args& args) {
  const int64_t keys = std::max<int64_t>(args.key.shape[1], 0);
  const int64_t queries =
      given(args.query_lengths) ? std::max<int64_t>(args.query.shape[1], 0) : keys;
  bool is_strided = false;
  for (int a = 0; a < problem.rank(); ++a) is_strided |= problem.axis(a).output_stride > 1;
  return {keys, queries, is_strided ? std::max<int64_t>(args.output.shape[1], 0) : queries};
}

// The values of lengths in host memory, whose tensors are as they should be, and what they add up
// to.
Status check_values_of_lengths(const Problem& problem, const vecina_tensor& lengths,
                               const vecina_tensor& query_lengths, Totals* totals) {
  const bool of_both = !given(query_lengths);
  VECINA_RETURN_IF_ERROR(check_lengths(problem, "lengths", lengths, /*of_queries=*/false, of_both,
                                       &totals->keys, &totals->outputs));
  totals->query_tokens = totals->keys;
  if (of_both) return {};
  return check_lengths(problem, "query_lengths", query_lengths, /*of_queries=*/true,
                       /*of_both=*/false, &totals->query_tokens, &totals->outputs);
}

template <typename Args>
Status check_all_lengths(const Problem& problem, const Args& args, Totals* totals) {
  if (problem.lengths() == VECINA_LENGTHS_EQUAL) {
    for (const auto& [name, tensor] :
         {std::pair{"lengths", &args.lengths}, {"query_lengths", &args.query_lengths}}) {
      if (given(*tensor)) {
        return invalid(fmt::format("{} is given, but the problem's lengths are equal.", name));
      }
    }
    return {};
  }
  const auto expect = [&](const char* name, const vecina_tensor& tensor) {
    const int32_t dtype = tensor.dtype == VECINA_I64 ? VECINA_I64 : VECINA_I32;
    VECINA_RETURN_IF_ERROR(
        check_tensor({name, &tensor, dtype, {problem.num_samples(), problem.rank()}}));
    if (tensor.device != args.query.device || tensor.device_index != args.query.device_index) {
      return invalid(fmt::format("{} is on device {}:{}, but query on {}:{}; all must be on one.",
                                 name, tensor.device, tensor.device_index, args.query.device,
                                 args.query.device_index));
    }
    return Status();
  };
  VECINA_RETURN_IF_ERROR(expect("lengths", args.lengths));
  if (given(args.query_lengths)) {
    if (!problem.is_attention()) {
      return invalid("query_lengths is given, but only attention problems have them.");
    }
    VECINA_RETURN_IF_ERROR(expect("query_lengths", args.query_lengths));
  }
  if (args.lengths.device != VECINA_CPU) {  // values are not read from here
    *totals = totals_of_tensors(problem, args);
    return {};
  }
  return check_values_of_lengths(problem, args.lengths, args.query_lengths, totals);
}

// Kernels take maxima before they scale. Values on a device are not read from here.
Status check_head_scale(const vecina_forward_args& example, const vecina_forward_args& args) {
  const vecina_tensor& tensor = example.head_scale;
  if (!given(tensor) || tensor.device != VECINA_CPU) return {};
  for (int64_t head = 0; head < tensor.shape[0]; ++head) {
    const double value = tensor.dtype == VECINA_F64
                             ? reinterpret_cast<const double*>(address(args.head_scale))[head]
                             : reinterpret_cast<const float*>(address(args.head_scale))[head];
    if (!std::isfinite(value) || value <= 0.0) {
      return invalid(
          fmt::format("head_scale[{}] is {}; it must be finite and above 0.", head, value));
    }
  }
  return {};
}
Status check_head_scale(const vecina_backward_args&, const vecina_backward_args&) { return {}; }

// Of tensors of which one is given: the other must be too, the address no less aligned.
Status compare_to_example(const NamedTensor& before, const NamedTensor& now) {
  if (given(*before.tensor) != given(*now.tensor)) {
    return invalid(fmt::format("{} is {}given, but was {}given when the plan was made.", now.name,
                               given(*now.tensor) ? "" : "not ",
                               given(*before.tensor) ? "" : "not "));
  }
  const auto is_aligned = [](const vecina_tensor& tensor) {
    return reinterpret_cast<uintptr_t>(address(tensor)) % kAlignment == 0;
  };
  const auto bytes = static_cast<uintptr_t>(dtype_bytes(before.tensor->dtype));
  if ((is_aligned(*before.tensor) && !is_aligned(*now.tensor)) ||
      reinterpret_cast<uintptr_t>(address(*now.tensor)) % bytes != 0) {
    return invalid(fmt::format(
        "{} is less aligned than when the plan was made ({} bytes then). Make another plan for "
        "such addresses.",
        now.name, is_aligned(*before.tensor) ? kAlignment : static_cast<int64_t>(bytes)));
  }
  return {};
}

// Whether a tensor's bytes reach into those of one that is written; most calls end with that.
bool may_overlap(const NamedTensor* list, const ByteRange* ranges, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; list[i].is_output && j < count; ++j) {
      if (j != i && ranges[i].overlaps(ranges[j])) return true;
    }
  }
  return false;
}

// The example's tensors at the run's addresses.
template <typename Args>
Status check_moved(const Args& example, const Args& args) {
  NamedTensor shapes[kMaxTensors], addresses[kMaxTensors];
  ByteRange ranges[kMaxTensors] = {};
  const int count = list_tensors(example, shapes);
  list_tensors(args, addresses);
  size_t num_given = 0;
  for (int i = 0; i < count; ++i) {
    if (!given(*shapes[i].tensor) && !given(*addresses[i].tensor)) continue;
    VECINA_RETURN_IF_ERROR(compare_to_example(shapes[i], addresses[i]));
    ranges[num_given] = byte_range(*shapes[i].tensor, address(*addresses[i].tensor));
    shapes[num_given] = shapes[i];
    addresses[num_given] = addresses[i];
    ++num_given;
  }
  if (!may_overlap(shapes, ranges, num_given)) return {};
  vecina_tensor merged[kMaxTensors];
  for (size_t i = 0; i < num_given; ++i) {
    merged[i] = at_address(*shapes[i].tensor, *addresses[i].tensor);
    shapes[i].tensor = &merged[i];
  }
  return check_overlap(shapes, num_given);
}

template <typename Args>
Status check_addresses(const Problem& problem, const Args& example, const Args& args) {
  VECINA_RETURN_IF_ERROR(check_moved(example, args));
  VECINA_RETURN_IF_ERROR(check_head_scale(example, args));
  if (problem.lengths() == VECINA_LENGTHS_EQUAL || example.lengths.device != VECINA_CPU) return {};
  Totals then, now;
  VECINA_RETURN_IF_ERROR(
      check_values_of_lengths(problem, at_address(example.lengths, args.lengths),
                              at_address(example.query_lengths, args.query_lengths), &now));
  if (problem.lengths() != VECINA_LENGTHS_PACKED) return {};
  then.keys = example.key.shape[1];
  then.query_tokens = example.query.shape[1];
  then.outputs = example.output.shape[1];
  if (then.keys != now.keys || then.query_tokens != now.query_tokens ||
      then.outputs != now.outputs) {
    return invalid(fmt::format(
        "lengths add up to {} keys, {} queries and {} outputs, but the plan was made for {}, {} "
        "and {}.",
        now.keys, now.query_tokens, now.outputs, then.keys, then.query_tokens, then.outputs));
  }
  return {};
}

}  // namespace

int list_tensors(const vecina_forward_args& args, NamedTensor (&list)[kMaxTensors]) {
  const NamedTensor all[] = {
      {"query", &args.query, false},
      {"key", &args.key, false},
      {"value", &args.value, false},
      {"additional_key", &args.additional_key, false},
      {"additional_value", &args.additional_value, false},
      {"bias", &args.bias, false},
      {"head_scale", &args.head_scale, false},
      {"lengths", &args.lengths, false},
      {"query_lengths", &args.query_lengths, false},
      {"output", &args.output, true},
      {"lse", &args.lse, true},
  };
  std::copy(std::begin(all), std::end(all), list);
  return static_cast<int>(std::size(all));
}

int list_tensors(const vecina_backward_args& args, NamedTensor (&list)[kMaxTensors]) {
  const NamedTensor all[] = {
      {"query", &args.query, false},
      {"key", &args.key, false},
      {"value", &args.value, false},
      {"additional_key", &args.additional_key, false},
      {"additional_value", &args.additional_value, false},
      {"bias", &args.bias, false},
      {"lengths", &args.lengths, false},
      {"query_lengths", &args.query_lengths, false},
      {"output", &args.output, false},
      {"lse", &args.lse, false},
      {"grad_output", &args.grad_output, false},
      {"grad_lse", &args.grad_lse, false},
      {"grad_query", &args.grad_query, true},
      {"grad_key", &args.grad_key, true},
      {"grad_value", &args.grad_value, true},
      {"grad_additional_key", &args.grad_additional_key, true},
      {"grad_additional_value", &args.grad_additional_value, true},
      {"grad_bias", &args.grad_bias, true},
  };
  static_assert(std::size(all) <= kMaxTensors);
  std::copy(std::begin(all), std::end(all), list);
  return static_cast<int>(std::size(all));
}

int list_tensors(const SplitArgs& args, NamedTensor (&list)[kMaxTensors]) {
  const vecina_split_args& c = args.c;
  const auto write = [&](std::initializer_list<NamedTensor> all) {
    std::copy(all.begin(), all.end(), list);
    return static_cast<int>(all.size());
  };
  if (args.pass == Pass::qk) {
    return write({{"query", &c.query, false},
                  {"key", &c.key, false},
                  {"additional_key", &c.additional_key, false},
                  {"bias", &c.bias, false},
                  {"weights", &c.weights, true}});
  }
  if (args.pass == Pass::av) {
    return write({{"weights", &c.weights, false},
                  {"value", &c.value, false},
                  {"additional_value", &c.additional_value, false},
                  {"output", &c.output, true}});
  }
  if (args.pass == Pass::qk_backward) {
    return write({{"query", &c.query, false},
                  {"key", &c.key, false},
                  {"additional_key", &c.additional_key, false},
                  {"grad_weights", &c.grad_weights, false},
                  {"grad_query", &c.grad_query, true},
                  {"grad_key", &c.grad_key, true},
                  {"grad_additional_key", &c.grad_additional_key, true},
                  {"grad_bias", &c.grad_bias, true}});
  }
  return write({{"weights", &c.weights, false},
                {"value", &c.value, false},
                {"additional_value", &c.additional_value, false},
                {"grad_output", &c.grad_output, false},
                {"grad_weights", &c.grad_weights, true},
                {"grad_value", &c.grad_value, true},
                {"grad_additional_value", &c.grad_additional_value, true}});
}

namespace {

template <typename Args>
Status check_all(const Problem& problem, const Args& args) {
  Totals totals;
  VECINA_RETURN_IF_ERROR(check_all_lengths(problem, args, &totals));
  std::vector<Expected> list;
  VECINA_RETURN_IF_ERROR(expected_tensors(problem, args, totals, &list));
  VECINA_RETURN_IF_ERROR(check_list(list));
  return check_head_scale(args, args);
}

}  // namespace

Status check_arguments(const Problem& problem, const vecina_forward_args& args) {
  return check_all(problem, args);
}
Status check_arguments(const Problem& problem, const vecina_backward_args& args) {
  return check_all(problem, args);
}

Status check_arguments(const Problem& problem, const SplitArgs& args) {
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) {
    return invalid(
        "the problem's lengths are not equal, but qk and av take samples that fill the extents. "
        "Call them for each sample.");
  }
  if (args.c.right_aligned != 0 && args.c.right_aligned != 1) {
    return invalid(fmt::format("right_aligned is {}; 0 or 1 is allowed.", args.c.right_aligned));
  }
  if (args.c.reserved != 0) {
    return invalid(fmt::format("reserved is {}; it must be 0.", args.c.reserved));
  }
  std::vector<Expected> list;
  VECINA_RETURN_IF_ERROR(expected_tensors(problem, args, Totals(), &list));
  return check_list(list);
}

Status check_workspace(size_t needed_bytes, const void* workspace, size_t workspace_bytes) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment == 0;
  if (needed_bytes == 0 ||
      (workspace != nullptr && workspace_bytes >= needed_bytes && is_aligned)) {
    return {};
  }
  return invalid(fmt::format(
      "workspace has {} bytes at {}; this plan needs {} bytes of device memory, aligned to {} "
      "(vecina_plan_workspace_bytes, vecina_workspace_bytes).",
      workspace_bytes, workspace, needed_bytes, kWorkspaceAlignment));
}

Status check_run(const Problem& problem, const vecina_forward_args& example,
                 const vecina_forward_args& args) {
  return check_addresses(problem, example, args);
}

Status check_run(const Problem& problem, const vecina_backward_args& example,
                 const vecina_backward_args& args) {
  return check_addresses(problem, example, args);
}

Status check_run(const Problem& /*problem*/, const SplitArgs& example, const SplitArgs& args) {
  return check_moved(example, args);
}

namespace {

// Merging is not planned, so its list is kept for the thread's next call.
std::vector<Expected>& merge_list() {
  thread_local std::vector<Expected> list;
  list.clear();
  return list;
}

// Shapes and dtypes of a merge follow its first output: [..., head_dim] and lse [...].
Status expect_merge(int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
                    std::vector<Expected>* list, Shape* shape, Shape* lse_shape) {
  if (count < 2) return invalid(fmt::format("count {} is less than 2; merging needs two.", count));
  const vecina_tensor& first = outputs[0];
  if (first.ndim < 2 || first.ndim > kMaxDims) {
    return invalid(fmt::format("outputs[0] has {} dimensions; 2 to 6 are allowed.", first.ndim));
  }
  const DtypeRow* row = dtype_row(first.dtype);
  if (row == nullptr || !row->is_float) {
    return invalid(fmt::format("outputs[0] is {}; one of f32, f64, f16, bf16 is allowed.",
                               dtype_name(first.dtype)));
  }
  if (std::any_of(first.shape, first.shape + first.ndim, [](int64_t n) { return n < 0; })) {
    return invalid(fmt::format("outputs[0] has a negative size: {}.", describe(first)));
  }
  for (int d = 0; d < first.ndim; ++d) {
    shape->push_back(first.shape[d]);
    if (d < first.ndim - 1) lse_shape->push_back(first.shape[d]);
  }
  for (int32_t i = 0; i < count; ++i) {
    list->push_back({"an element of outputs", &outputs[i], first.dtype, *shape});
    list->push_back({"an element of lses", &lses[i], lse_dtype(first.dtype), *lse_shape});
  }
  return {};
}

}  // namespace

Status check_merge(int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
                   const vecina_tensor& output, const vecina_tensor& lse) {
  std::vector<Expected>& list = merge_list();
  Shape shape, lse_shape;
  VECINA_RETURN_IF_ERROR(expect_merge(count, outputs, lses, &list, &shape, &lse_shape));
  list.push_back({"output", &output, outputs[0].dtype, shape, true});
  list.push_back({"lse", &lse, lse_dtype(outputs[0].dtype), lse_shape, true, true});
  return check_list(list);
}

Status check_merge_backward(int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
                            const vecina_tensor& grad_output, const vecina_tensor& grad_lse,
                            const vecina_tensor* grad_outputs, const vecina_tensor* grad_lses) {
  std::vector<Expected>& list = merge_list();
  Shape shape, lse_shape;
  VECINA_RETURN_IF_ERROR(expect_merge(count, outputs, lses, &list, &shape, &lse_shape));
  const int32_t dtype = outputs[0].dtype;
  list.push_back({"grad_output", &grad_output, dtype, shape});
  list.push_back({"grad_lse", &grad_lse, lse_dtype(dtype), lse_shape, false, true});
  for (int32_t i = 0; i < count; ++i) {
    list.push_back({"an element of grad_outputs", &grad_outputs[i], dtype, shape, true, true});
    list.push_back(
        {"an element of grad_lses", &grad_lses[i], lse_dtype(dtype), lse_shape, true, true});
  }
  return check_list(list);
}

}  // namespace vecina::internal
