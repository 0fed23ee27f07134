// SPDX-License-Identifier: MIT
// One table per call says which tensors there are, their shapes and dtypes; the checks walk it.
#include "core/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace vecina::internal {

std::string describe(const vecina_tensor& tensor) {
  const int ndim = std::clamp(tensor.ndim, 0, 6);
  return fmt::format("[{}] {}", fmt::join(tensor.shape, tensor.shape + ndim, ", "),
                     dtype_name(tensor.dtype));
}

namespace {

constexpr int kMaxDims = 6;
constexpr int64_t kAlignment = 16;              // what plans remember of a pointer
constexpr uintptr_t kWorkspaceAlignment = 256;  // vecina.h
// Aligned for everything, far from both ends of the address space, never followed.
constexpr uintptr_t kImaginedAddress = uintptr_t{1} << (8 * sizeof(uintptr_t) - 24);

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

// A list of sizes that lives on the stack: a warm call allocates nothing.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) { append(sizes); }
  template <typename List>
  void append(const List& sizes) {
    for (const int64_t size : sizes) push_back(size);
  }
  void push_back(int64_t size) { sizes_[static_cast<size_t>(ndim_++)] = size; }
  int size() const { return ndim_; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + ndim_; }

 private:
  std::array<int64_t, kMaxDims> sizes_ = {};
  int ndim_ = 0;
};

struct Expected {
  const char* name;
  const vecina_tensor* tensor;
  int32_t dtype;
  Shape shape;
  bool is_output = false;
  bool is_optional = false;
};

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
  if (tensor.shape[last] > 1 && tensor.strides[last] != 1) {
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
    *tokens += sample_tokens;
    *queries += sample_queries;
  }
  return {};
}

// Token counts of packed tensors; unused otherwise.
struct Totals {
  int64_t keys = 0, query_tokens = 0, outputs = 0;
};

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
    if (tensor.device != VECINA_CPU) return Status();  // values are not read from here
    const bool of_queries = name[0] == 'q';
    int64_t tokens = 0, queries = 0;
    VECINA_RETURN_IF_ERROR(check_lengths(problem, name, tensor, of_queries,
                                         !of_queries && !given(args.query_lengths), &tokens,
                                         &queries));
    if (!of_queries) totals->keys = tokens;
    totals->query_tokens = tokens;
    totals->outputs = queries;
    return Status();
  };
  VECINA_RETURN_IF_ERROR(expect("lengths", args.lengths));
  if (args.lengths.device != VECINA_CPU) *totals = totals_of_tensors(problem, args);
  if (!given(args.query_lengths)) return {};
  if (!problem.is_attention()) {
    return invalid("query_lengths is given, but only attention problems have them.");
  }
  return expect("query_lengths", args.query_lengths);
}

// The shapes of a problem's tensors.
class Shapes {
 public:
  Shapes(const Problem& problem, const Totals& totals) : problem_(problem), totals_(totals) {}

  Shape query() const {
    return tokens(totals_.query_tokens, &Axis::query_extent,
                  {problem_.heads(), problem_.head_dim()});
  }
  Shape key(int head_dim) const {
    return tokens(totals_.keys, &Axis::extent, {problem_.heads_kv(), head_dim});
  }
  Shape output() const {
    return tokens(totals_.outputs, &Axis::num_queries,
                  {problem_.heads(), problem_.head_dim_value()});
  }
  Shape lse() const { return tokens(totals_.outputs, &Axis::num_queries, {problem_.heads()}); }
  Shape weights() const {
    Shape shape = lse();
    shape.push_back(problem_.num_slots());
    return shape;
  }
  Shape additional(int head_dim) const {
    return {problem_.num_samples(), problem_.additional_tokens(), problem_.heads_kv(), head_dim};
  }
  Shape bias() const {
    Shape shape = {problem_.heads()};
    for (int a = 0; a < problem_.rank(); ++a) shape.push_back(2 * problem_.axis(a).kernel_size - 1);
    return shape;
  }

 private:
  template <typename Field>
  Shape tokens(int64_t total, Field field, std::initializer_list<int> tail) const {
    Shape shape = {problem_.batch()};
    if (problem_.lengths() == VECINA_LENGTHS_PACKED) {
      shape.push_back(total);
    } else {
      for (int a = 0; a < problem_.rank(); ++a) {
        shape.push_back(std::invoke(field, problem_.axis(a)));
      }
    }
    shape.append(tail);
    return shape;
  }

  const Problem& problem_;
  const Totals& totals_;
};

// What forward and backward both read.
template <typename Args>
Status expected_inputs(const Problem& problem, const Args& args, const Shapes& shapes,
                       std::vector<Expected>* list) {
  const int32_t dtype = problem.dtype(), query_key_dtype = problem.query_key_dtype();
  list->push_back({"query", &args.query, query_key_dtype, shapes.query()});
  list->push_back({"key", &args.key, query_key_dtype, shapes.key(problem.head_dim())});
  list->push_back({"value", &args.value, dtype, shapes.key(problem.head_dim_value())});
  if (problem.additional_tokens() > 0) {
    list->push_back({"additional_key", &args.additional_key, query_key_dtype,
                     shapes.additional(problem.head_dim())});
    list->push_back({"additional_value", &args.additional_value, dtype,
                     shapes.additional(problem.head_dim_value())});
  } else if (given(args.additional_key) || given(args.additional_value)) {
    return invalid(fmt::format("{} is given, but the problem has additional_tokens 0.",
                               given(args.additional_key) ? "additional_key" : "additional_value"));
  }
  if (problem.has_bias()) {
    list->push_back({"bias", &args.bias, lse_dtype(dtype), shapes.bias()});
  } else if (given(args.bias)) {
    return invalid("bias is given, but the problem has has_bias 0.");
  }
  return {};
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

// given(tensor) must be the same in both, the address no less aligned.
Status compare_to_example(const NamedTensor& before, const NamedTensor& now) {
  if (given(*before.tensor) != given(*now.tensor)) {
    return invalid(fmt::format("{} is {}given, but was {}given when the plan was made.", now.name,
                               given(*now.tensor) ? "" : "not ",
                               given(*before.tensor) ? "" : "not "));
  }
  if (!given(*now.tensor)) return {};
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

// The example's tensors at the run's addresses.
template <typename Args>
Status check_moved(const Args& example, const Args& args) {
  NamedTensor shapes[kMaxTensors], addresses[kMaxTensors];
  const int count = list_tensors(example, shapes);
  list_tensors(args, addresses);
  vecina_tensor merged[kMaxTensors];
  size_t num_given = 0;
  for (int i = 0; i < count; ++i) {
    VECINA_RETURN_IF_ERROR(compare_to_example(shapes[i], addresses[i]));
    if (!given(*shapes[i].tensor)) continue;
    merged[num_given] = *shapes[i].tensor;
    merged[num_given].data = addresses[i].tensor->data;
    merged[num_given].byte_offset = addresses[i].tensor->byte_offset;
    shapes[num_given] = {shapes[i].name, &merged[num_given], shapes[i].is_output};
    ++num_given;
  }
  return check_overlap(shapes, num_given);
}

template <typename Args>
Status check_addresses(const Problem& problem, const Args& example, const Args& args) {
  VECINA_RETURN_IF_ERROR(check_moved(example, args));
  VECINA_RETURN_IF_ERROR(check_head_scale(example, args));
  if (problem.lengths() == VECINA_LENGTHS_EQUAL) return {};
  Totals then, now;
  VECINA_RETURN_IF_ERROR(check_all_lengths(problem, args, &now));
  if (problem.lengths() != VECINA_LENGTHS_PACKED || args.lengths.device != VECINA_CPU) return {};
  then.keys = example.key.shape[1];
  then.query_tokens = example.query.shape[1];
  if (then.keys != now.keys || then.query_tokens != now.query_tokens) {
    return invalid(fmt::format(
        "lengths add up to {} keys and {} queries, but the plan was made for {} and {}.", now.keys,
        now.query_tokens, then.keys, then.query_tokens));
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

// Of a tensor that the split form has under this name.
Expected expected_tensor(const Problem& problem, const Shapes& shapes, const NamedTensor& named) {
  const std::string_view whole = named.name;
  const bool is_gradient = whole.starts_with("grad_");
  const std::string_view name = is_gradient ? whole.substr(5) : whole;
  Expected expected = {named.name, named.tensor,    problem.dtype(),
                       {},         named.is_output, is_gradient && named.is_output};
  if (!is_gradient && name.ends_with("key")) expected.dtype = problem.query_key_dtype();
  if (!is_gradient && name == "query") expected.dtype = problem.query_key_dtype();
  if (name == "query") expected.shape = shapes.query();
  if (name == "key") expected.shape = shapes.key(problem.head_dim());
  if (name == "value") expected.shape = shapes.key(problem.head_dim_value());
  if (name == "additional_key") expected.shape = shapes.additional(problem.head_dim());
  if (name == "additional_value") expected.shape = shapes.additional(problem.head_dim_value());
  if (name == "weights") expected.shape = shapes.weights();
  if (name == "output") expected.shape = shapes.output();
  if (name == "bias") {
    expected.shape = shapes.bias();
    expected.dtype = lse_dtype(problem.dtype());
  }
  return expected;
}

// Empty, or what the problem lacks for this tensor.
const char* missing_for(const Problem& problem, std::string_view name) {
  if (name.ends_with("bias") && !problem.has_bias()) return "has_bias";
  const bool is_additional = name.find("additional") != std::string_view::npos;
  return is_additional && problem.additional_tokens() == 0 ? "additional_tokens" : "";
}

Status expected_tensors(const Problem& problem, const vecina_forward_args& args,
                        const Totals& totals, std::vector<Expected>* expected) {
  std::vector<Expected>& list = *expected;
  const Shapes shapes(problem, totals);
  VECINA_RETURN_IF_ERROR(expected_inputs(problem, args, shapes, &list));
  if (problem.has_e4m3()) {
    list.push_back({"head_scale",
                    &args.head_scale,
                    lse_dtype(problem.dtype()),
                    {problem.heads()},
                    false,
                    true});
  } else if (given(args.head_scale)) {
    return invalid("head_scale is given, but the problem's query_key_dtype is not e4m3.");
  }
  list.push_back({"output", &args.output, problem.dtype(), shapes.output(), true});
  list.push_back({"lse", &args.lse, lse_dtype(problem.dtype()), shapes.lse(), true, true});
  return {};
}

Status expected_tensors(const Problem& problem, const vecina_backward_args& args,
                        const Totals& totals, std::vector<Expected>* expected) {
  std::vector<Expected>& list = *expected;
  const Shapes shapes(problem, totals);
  VECINA_RETURN_IF_ERROR(expected_inputs(problem, args, shapes, &list));
  const int32_t dtype = problem.dtype();
  list.push_back({"output", &args.output, dtype, shapes.output()});
  list.push_back({"lse", &args.lse, lse_dtype(dtype), shapes.lse()});
  list.push_back({"grad_output", &args.grad_output, dtype, shapes.output()});
  list.push_back({"grad_lse", &args.grad_lse, lse_dtype(dtype), shapes.lse(), false, true});
  const struct {
    const char* name;
    const vecina_tensor* tensor;
    bool has_input;
  } additional[] = {
      {"grad_additional_key", &args.grad_additional_key, problem.additional_tokens() > 0},
      {"grad_additional_value", &args.grad_additional_value, problem.additional_tokens() > 0},
      {"grad_bias", &args.grad_bias, problem.has_bias()},
  };
  for (const auto& row : additional) {
    if (given(*row.tensor) && !row.has_input) {
      return invalid(
          fmt::format("{} is wanted, but the problem has no {}.", row.name, row.name + 5));
    }
  }
  list.push_back({"grad_query", &args.grad_query, dtype, shapes.query(), true, true});
  list.push_back({"grad_key", &args.grad_key, dtype, shapes.key(problem.head_dim()), true, true});
  list.push_back(
      {"grad_value", &args.grad_value, dtype, shapes.key(problem.head_dim_value()), true, true});
  if (problem.additional_tokens() > 0) {
    list.push_back({"grad_additional_key", &args.grad_additional_key, dtype,
                    shapes.additional(problem.head_dim()), true, true});
    list.push_back({"grad_additional_value", &args.grad_additional_value, dtype,
                    shapes.additional(problem.head_dim_value()), true, true});
  }
  if (problem.has_bias()) {
    list.push_back({"grad_bias", &args.grad_bias, lse_dtype(dtype), shapes.bias(), true, true});
  }
  return {};
}

Status expected_tensors(const Problem& problem, const SplitArgs& args, const Totals& totals,
                        std::vector<Expected>* expected) {
  NamedTensor tensors[kMaxTensors];
  const int count = list_tensors(args, tensors);
  const Shapes shapes(problem, totals);
  for (int i = 0; i < count; ++i) {
    const std::string_view missing = missing_for(problem, tensors[i].name);
    if (missing.empty()) {
      expected->push_back(expected_tensor(problem, shapes, tensors[i]));
    } else if (given(*tensors[i].tensor)) {
      return invalid(
          fmt::format("{} is given, but the problem has {} 0.", tensors[i].name, missing));
    }
  }
  return {};
}

template <typename Args>
Status check_all(const Problem& problem, const Args& args) {
  Totals totals;
  VECINA_RETURN_IF_ERROR(check_all_lengths(problem, args, &totals));
  std::vector<Expected> list;
  VECINA_RETURN_IF_ERROR(expected_tensors(problem, args, totals, &list));
  VECINA_RETURN_IF_ERROR(check_list(list));
  return check_head_scale(args, args);
}

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
