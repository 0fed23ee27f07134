// SPDX-License-Identifier: MIT
#include "core/arguments_table.h"

#include <fmt/format.h>

#include <functional>
#include <string_view>

#include "core/tensor.h"

namespace vecina::internal {
namespace {

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

}  // namespace

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

}  // namespace vecina::internal
