// SPDX-License-Identifier: MIT
// Vecina in C++20: RAII, std::span and exceptions over the C interface (vecina.h). Header-only.
//
//   vecina::Context context;  // the best backend here
//   const auto problem = vecina::Problem::parse("1d 256 kernel_size 7 heads 8 head_dim 32");
//   std::vector<float> output(problem.output_shape().count());
//   vecina::forward(context, problem,
//                   {.query = query, .key = key, .value = value, .output = output});
//
// A tensor is given as anything contiguous (std::vector, std::span, std::array) and then has the
// shape that the problem says, or as view(data, shape, strides). Shapes, strides and dtypes are
// those of vecina.h. Every function that can fail throws vecina::Error; nothing else is thrown but
// std::bad_alloc. Tensors are never copied and never owned.
#ifndef VECINA_VECINA_HPP_
#define VECINA_VECINA_HPP_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vecina/problem.hpp"  // Problem, Window
#include "vecina/tensor.hpp"   // float16, bfloat16, Error, Sizes, view
#include "vecina/vecina.h"

namespace vecina {
inline namespace v0 {

// "0.1.0": the library's version, not the header's.
inline std::string version() { return vecina_version(); }

// Names of the backends in this library, in order of preference.
inline std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (std::int32_t i = 0; i < vecina_backend_count(); ++i) names.push_back(vecina_backend_name(i));
  return names;
}

// Empty and 0 mean: the environment variable of vecina.h, else the library's choice.
struct ContextOptions {
  std::string backend = {};  // "cpu", "reference", ...
  int device_index = 0;      // where tensors are on the host; otherwise the tensors decide
  int threads = 0;           // the caller's included
  std::string cache_dir = {};
  // The host's own pool: calls body(i, user_body) for i in [0, count), returns when all are done.
  void (*parallel_for)(void* user, std::int64_t count,
                       void (*body)(std::int64_t i, void* user_body), void* user_body) = nullptr;
  void* parallel_for_user = nullptr;
};

// A backend choice, worker threads, scratch and caches. Make one and keep it; it may be used from
// many threads at once.
class Context {
 public:
  // The best backend here. Throws Error if the machine has none, or options name an unknown one.
  Context() : Context(ContextOptions{}) {}
  explicit Context(const ContextOptions& options) {
    vecina_context_options c = {};
    c.struct_size = sizeof(c);
    c.backend = options.backend.empty() ? nullptr : options.backend.c_str();
    c.device_index = options.device_index;
    c.threads = options.threads;
    c.cache_dir = options.cache_dir.empty() ? nullptr : options.cache_dir.c_str();
    c.parallel_for = options.parallel_for;
    c.parallel_for_user = options.parallel_for_user;
    vecina_context* context = nullptr;
    detail::check(vecina_context_create(&c, &context));
    context_.reset(context);
  }

  // Why backend `name` cannot run at all here; empty if it can.
  std::string why_not(const std::string& name) const { return why_not(name, nullptr); }
  // Why backend `name` cannot run this problem here; empty if it can.
  std::string why_not(const std::string& name, const Problem& problem) const {
    return why_not(name, &problem.fields());
  }
  // JSON: version, backends, instruction sets, cores.
  std::string info() const { return text("info"); }
  // JSON: the measured peak of the machine; takes a second.
  std::string peak() const { return text("peak"); }

  vecina_context* get() const { return context_.get(); }

 private:
  struct Destroy {
    void operator()(vecina_context* context) const { vecina_context_destroy(context); }
  };
  std::string why_not(const std::string& name, const vecina_problem* problem) const {
    return detail::text_of([&](char* text, std::size_t size) {
      return vecina_backend_why_not(get(), name.c_str(), problem, text, size);
    });
  }
  std::string text(const char* what) const {
    return detail::checked_text_of(
        [&](char* text, std::size_t size) { return vecina_info(get(), what, text, size); });
  }

  std::unique_ptr<vecina_context, Destroy> context_;
};

// Tensors of a forward call. dtype of query, key, value, output and the additional tokens: the
// problem's (of query and keys its query_key_dtype); lse, bias and head_scale: f32, f64 for f64
// problems; lengths: int32 or int64.
struct ForwardArgs {
  ConstTensorView query = {}, key = {}, value = {};
  ConstTensorView additional_key = {}, additional_value = {};  // both, if the problem has them
  ConstTensorView bias = {};
  ConstTensorView lengths = {}, query_lengths = {};
  TensorView output = {};
  TensorView lse = {};        // optional
  void* workspace = nullptr;  // device memory; the backends of the CPU need none
  std::size_t workspace_bytes = 0;
  ConstTensorView head_scale = {};  // optional, with e4m3
};

// Tensors of a backward call. output and lse are what forward wrote. Gradients have the shapes and
// dtypes of what they belong to; those that are given are overwritten, the others not computed.
struct BackwardArgs {
  ConstTensorView query = {}, key = {}, value = {};
  ConstTensorView additional_key = {}, additional_value = {};
  ConstTensorView bias = {};
  ConstTensorView lengths = {}, query_lengths = {};
  ConstTensorView output = {}, lse = {};
  ConstTensorView grad_output = {};
  ConstTensorView grad_lse = {};  // optional
  TensorView grad_query = {}, grad_key = {}, grad_value = {};
  TensorView grad_additional_key = {}, grad_additional_value = {}, grad_bias = {};
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

// Tensors of the split form, vecina_split_args: each call reads and writes those named for it and
// ignores the others. weights [batch, queries..., heads, slots] have the problem's dtype.
struct SplitArgs {
  ConstTensorView query = {}, key = {}, additional_key = {};  // qk, qk_backward
  ConstTensorView bias = {};                                  // qk
  ConstTensorView value = {}, additional_value = {};          // av, av_backward
  TensorView weights = {};                                    // written by qk, else read
  TensorView output = {};                                     // written by av
  TensorView grad_weights = {};      // read by qk_backward; av_backward writes it if given
  ConstTensorView grad_output = {};  // av_backward
  TensorView grad_query = {}, grad_key = {}, grad_additional_key = {}, grad_bias = {};
  TensorView grad_value = {}, grad_additional_value = {};
  bool right_aligned = false;  // empty slots of a causal window come first, not last
};

namespace detail {

// The C form of the arguments: spans get the shapes that the problem says.
template <typename Shape>
void fill(vecina_tensor* to, const ConstTensorView& from, const char* name, Shape shape) {
  if (from.given()) *to = from.has_shape() ? from.c_tensor() : from.with_shape(shape(), name);
}

#define VECINA_FILL(name, shape) \
  fill(&c.name, args.name, #name, [&problem] { return problem.shape(); })

template <typename To, typename From>
void fill_inputs(To& c, const Problem& problem, const From& args) {
  VECINA_FILL(query, query_shape);
  VECINA_FILL(key, key_shape);
  VECINA_FILL(value, value_shape);
  VECINA_FILL(additional_key, additional_key_shape);
  VECINA_FILL(additional_value, additional_value_shape);
  VECINA_FILL(bias, bias_shape);
  VECINA_FILL(lengths, lengths_shape);
  VECINA_FILL(query_lengths, lengths_shape);
  VECINA_FILL(output, output_shape);
  VECINA_FILL(lse, lse_shape);
  c.workspace = args.workspace;
  c.workspace_bytes = args.workspace_bytes;
}

inline vecina_forward_args to_c(const Problem& problem, const ForwardArgs& args) {
  vecina_forward_args c = {};
  c.struct_size = sizeof(c);
  fill_inputs(c, problem, args);
  VECINA_FILL(head_scale, head_scale_shape);
  return c;
}

inline vecina_backward_args to_c(const Problem& problem, const BackwardArgs& args) {
  vecina_backward_args c = {};
  c.struct_size = sizeof(c);
  fill_inputs(c, problem, args);
  VECINA_FILL(grad_output, output_shape);
  VECINA_FILL(grad_lse, lse_shape);
  VECINA_FILL(grad_query, query_shape);
  VECINA_FILL(grad_key, key_shape);
  VECINA_FILL(grad_value, value_shape);
  VECINA_FILL(grad_additional_key, additional_key_shape);
  VECINA_FILL(grad_additional_value, additional_value_shape);
  VECINA_FILL(grad_bias, bias_shape);
  return c;
}

inline vecina_split_args to_c(const Problem& problem, const SplitArgs& args) {
  vecina_split_args c = {};
  c.struct_size = sizeof(c);
  VECINA_FILL(query, query_shape);
  VECINA_FILL(key, key_shape);
  VECINA_FILL(additional_key, additional_key_shape);
  VECINA_FILL(bias, bias_shape);
  VECINA_FILL(value, value_shape);
  VECINA_FILL(additional_value, additional_value_shape);
  VECINA_FILL(weights, weights_shape);
  VECINA_FILL(output, output_shape);
  VECINA_FILL(grad_weights, weights_shape);
  VECINA_FILL(grad_output, output_shape);
  VECINA_FILL(grad_query, query_shape);
  VECINA_FILL(grad_key, key_shape);
  VECINA_FILL(grad_additional_key, additional_key_shape);
  VECINA_FILL(grad_bias, bias_shape);
  VECINA_FILL(grad_value, value_shape);
  VECINA_FILL(grad_additional_value, additional_value_shape);
  c.right_aligned = args.right_aligned;
  return c;
}
#undef VECINA_FILL

}  // namespace detail

// Bytes of device workspace that a call needs (0 on the CPU). Throws Error if the problem is not
// valid.
inline std::size_t workspace_bytes(const Context& context, const Problem& problem,
                                   bool backward = false) {
  const std::size_t bytes = vecina_workspace_bytes(context.get(), &problem.fields(), backward);
  detail::check(vecina_last_status());
  return bytes;
}

// Attention: writes args.output, and args.lse if given. Plans are kept in the context, so the first
// call of a problem costs more than the next. `queue` is a CUstream for CUDA; the CPU ignores it
// and is done on return. Throws Error: VECINA_INVALID_ARGUMENT if a shape, dtype or size does not
// fit (nothing was written), VECINA_UNSUPPORTED if no backend takes the problem.
inline void forward(const Context& context, const Problem& problem, const ForwardArgs& args,
                    void* queue = nullptr) {
  const vecina_forward_args c = detail::to_c(problem, args);
  detail::check(vecina_forward(context.get(), &problem.fields(), &c, queue));
}

// The gradients that args asks for. Errors as in forward.
inline void backward(const Context& context, const Problem& problem, const BackwardArgs& args,
                     void* queue = nullptr) {
  const vecina_backward_args c = detail::to_c(problem, args);
  detail::check(vecina_backward(context.get(), &problem.fields(), &c, queue));
}

// The split form: weights = scale * query . key + bias over each query's window, -inf in slots that
// causality leaves empty; then output = sum of weights * value. vecina_split_args says how weights
// are laid out. Errors as in forward; lengths must be equal.
inline void qk(const Context& context, const Problem& problem, const SplitArgs& args,
               void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_qk(context.get(), &problem.fields(), &c, queue));
}
inline void av(const Context& context, const Problem& problem, const SplitArgs& args,
               void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_av(context.get(), &problem.fields(), &c, queue));
}
// The gradients that args asks for.
inline void qk_backward(const Context& context, const Problem& problem, const SplitArgs& args,
                        void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_qk_backward(context.get(), &problem.fields(), &c, queue));
}
inline void av_backward(const Context& context, const Problem& problem, const SplitArgs& args,
                        void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_av_backward(context.get(), &problem.fields(), &c, queue));
}

template <typename Args>
concept PassArgs = std::same_as<Args, ForwardArgs> || std::same_as<Args, BackwardArgs>;

// Everything decided once, for calls of the same problem with tensors of the same shapes, strides,
// dtypes and alignment. Immutable, usable from many threads. Keeps its context alive.
class Plan {
 public:
  // Errors as in vecina::forward; the example's tensors are not read or written.
  static Plan forward(const Context& context, const Problem& problem, const ForwardArgs& example) {
    const vecina_forward_args c = detail::to_c(problem, example);
    vecina_plan* plan = nullptr;
    detail::check(vecina_plan_forward(context.get(), &problem.fields(), &c, &plan));
    return Plan(plan, problem, false);
  }
  static Plan backward(const Context& context, const Problem& problem,
                       const BackwardArgs& example) {
    const vecina_backward_args c = detail::to_c(problem, example);
    vecina_plan* plan = nullptr;
    detail::check(vecina_plan_backward(context.get(), &problem.fields(), &c, &plan));
    return Plan(plan, problem, true);
  }

  // Runs it; may be called from many threads at once. Throws Error (VECINA_INVALID_ARGUMENT) if a
  // tensor is missing or less aligned than the example's, or the plan is one of the other pass.
  // run({.query = ...}) is a forward run; a backward one is run(BackwardArgs{...}).
  template <PassArgs Args = ForwardArgs>
  void run(const Args& args, void* queue = nullptr) const {
    const auto c = detail::to_c(problem_, args);
    if constexpr (std::same_as<Args, ForwardArgs>) {
      detail::check(vecina_run_forward(get(), &c, queue));
    } else {
      detail::check(vecina_run_backward(get(), &c, queue));
    }
  }

  // Bytes of device workspace that run() needs (0 on the CPU).
  std::size_t workspace_bytes() const { return vecina_plan_workspace_bytes(get()); }
  // JSON: backend, kernel, tiles, work, why.
  std::string describe() const {
    return detail::checked_text_of(
        [this](char* text, std::size_t size) { return vecina_plan_describe(get(), text, size); });
  }
  // Runs it `repeats` times and says where the time went, as JSON. Throws Error as run() does, and
  // if repeats is less than 1.
  template <PassArgs Args = ForwardArgs>
  std::string profile(const Args& args, int repeats) const {
    if (std::same_as<Args, BackwardArgs> != is_backward_) {  // vecina_profile cannot tell
      throw Error(VECINA_INVALID_ARGUMENT,
                  is_backward_ ? "this plan is for backward; profile it with BackwardArgs."
                               : "this plan is for forward; profile it with ForwardArgs.");
    }
    const auto c = detail::to_c(problem_, args);
    return detail::checked_text_of([&](char* text, std::size_t size) {
      return vecina_profile(get(), &c, repeats, text, size);
    });
  }

  const Problem& problem() const { return problem_; }
  const vecina_plan* get() const { return plan_.get(); }

 private:
  struct Destroy {
    void operator()(vecina_plan* plan) const { vecina_plan_destroy(plan); }
  };
  Plan(vecina_plan* plan, const Problem& problem, bool is_backward)
      : plan_(plan), problem_(problem), is_backward_(is_backward) {}

  std::unique_ptr<vecina_plan, Destroy> plan_;
  Problem problem_;
  bool is_backward_;
};

// Attentions over different keys, made one. All outputs have one shape [..., head_dim_value] and
// dtype; lses have the shape of outputs without the last dimension (f32; f64 for f64).
struct MergeArgs {
  std::vector<ConstTensorView> outputs = {}, lses = {};  // two or more of each
  TensorView output = {}, lse = {};
};
// Gradients of a merge. grad_outputs and grad_lses hold one entry for each of outputs; an entry
// that is not given is not computed.
struct MergeBackwardArgs {
  std::vector<ConstTensorView> outputs = {}, lses = {};
  ConstTensorView grad_output = {};
  ConstTensorView grad_lse = {};  // optional
  std::vector<TensorView> grad_outputs = {}, grad_lses = {};
};

namespace detail {

// Spans without a shape become [tokens, head_dim_value] and [tokens].
struct MergeShapes {
  Sizes output, lse;

  MergeShapes(const std::vector<ConstTensorView>& outputs,
              const std::vector<ConstTensorView>& lses) {
    if (outputs.size() < 2 || outputs.size() != lses.size()) {
      throw Error(VECINA_INVALID_ARGUMENT,
                  "merge takes two or more outputs and as many lses, not " +
                      std::to_string(outputs.size()) + " and " + std::to_string(lses.size()) + ".");
    }
    if (outputs[0].has_shape() || lses[0].has_shape()) return;  // then all must have one
    const std::size_t tokens = lses[0].count(), elements = outputs[0].count();
    if (tokens == 0 || elements % tokens != 0) {
      throw Error(VECINA_INVALID_ARGUMENT, "outputs[0] has " + std::to_string(elements) +
                                               " elements, lses[0] " + std::to_string(tokens) +
                                               "; the first must be a multiple of the second.");
    }
    lse.append(static_cast<std::int64_t>(tokens));
    output.append(static_cast<std::int64_t>(tokens));
    output.append(static_cast<std::int64_t>(elements / tokens));
  }
};

template <typename View>
std::vector<vecina_tensor> shaped_list(const std::vector<View>& views, const Sizes& shape,
                                       const char* name, std::size_t count) {
  if (views.size() != count) {
    throw Error(VECINA_INVALID_ARGUMENT, std::string(name) + " has " +
                                             std::to_string(views.size()) + " entries, outputs " +
                                             std::to_string(count) + ".");
  }
  std::vector<vecina_tensor> tensors;
  for (const View& view : views) tensors.push_back(view.with_shape(shape, name));
  return tensors;
}

}  // namespace detail

// output = sum_i w_i outputs[i] with w = softmax over i of lses[i]; lse = log of the sum of
// exp(lses[i]). Throws Error if counts, shapes or dtypes do not fit.
inline void merge_attentions(const Context& context, const MergeArgs& args, void* queue = nullptr) {
  const detail::MergeShapes shapes(args.outputs, args.lses);
  const std::size_t count = args.outputs.size();
  const auto outputs = detail::shaped_list(args.outputs, shapes.output, "outputs", count);
  const auto lses = detail::shaped_list(args.lses, shapes.lse, "lses", count);
  const vecina_tensor output = args.output.with_shape(shapes.output, "output");
  const vecina_tensor lse = args.lse.with_shape(shapes.lse, "lse");
  detail::check(vecina_merge_attentions(context.get(), static_cast<std::int32_t>(count),
                                        outputs.data(), lses.data(), &output, &lse, queue));
}

// Gradients of merge_attentions. Errors as there.
inline void merge_attentions_backward(const Context& context, const MergeBackwardArgs& args,
                                      void* queue = nullptr) {
  const detail::MergeShapes shapes(args.outputs, args.lses);
  const std::size_t count = args.outputs.size();
  const auto outputs = detail::shaped_list(args.outputs, shapes.output, "outputs", count);
  const auto lses = detail::shaped_list(args.lses, shapes.lse, "lses", count);
  const auto grad_outputs =
      detail::shaped_list(args.grad_outputs, shapes.output, "grad_outputs", count);
  const auto grad_lses = detail::shaped_list(args.grad_lses, shapes.lse, "grad_lses", count);
  const vecina_tensor grad_output = args.grad_output.with_shape(shapes.output, "grad_output");
  const vecina_tensor grad_lse = args.grad_lse.with_shape(shapes.lse, "grad_lse");
  detail::check(vecina_merge_attentions_backward(
      context.get(), static_cast<std::int32_t>(count), outputs.data(), lses.data(), &grad_output,
      &grad_lse, grad_outputs.data(), grad_lses.data(), queue));
}

}  // namespace v0
}  // namespace vecina
#endif  // VECINA_VECINA_HPP_
