// SPDX-License-Identifier: MIT
// The backends "reference" and "plain": the definition in attention.h, forward.h, backward.h and
// merge.h, in one of the two arithmetics of arithmetic.h.
#include "reference/reference.h"

#include <fmt/format.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "reference/arithmetic.h"
#include "reference/backward.h"
#include "reference/forward.h"
#include "reference/merge.h"
#include "reference/split.h"

namespace vecina::internal {
namespace {

using reference::Exact;
using reference::Plain;

// Calls run(arithmetic) with ArithmeticOf<the element type of dtype>, and turns a failed allocation
// into a Status.
template <template <class> class ArithmeticOf, class Run>
Status with_dtype(int32_t dtype, Run&& run) {
  const char* no_memory =
      "no memory for the sums of the reference loops. Use a smaller problem or another backend.";
  try {
    switch (dtype) {
      case VECINA_F32:
        run(ArithmeticOf<float>{});
        return {};
      case VECINA_F64:
        run(ArithmeticOf<double>{});
        return {};
      case VECINA_F16:
        run(ArithmeticOf<float16>{});
        return {};
      case VECINA_BF16:
        run(ArithmeticOf<bfloat16>{});
        return {};
      default:
        return unsupported(
            fmt::format("dtype {} is not one of f32, f64, f16, bf16.", dtype_name(dtype)));
    }
  } catch (const std::bad_alloc&) {
    return out_of_memory(no_memory);
  } catch (const std::length_error&) {  // more than a vector could ever hold
    return out_of_memory(no_memory);
  }
}

template <class A>
void compute(const Problem& problem, const vecina_forward_args& args) {
  if (problem.has_e4m3()) {
    reference::forward<typename A::template WithQueryKey<float8_e4m3>>(problem, args);
  } else {
    reference::forward<A>(problem, args);
  }
}
template <class A>
void compute(const Problem& problem, const vecina_backward_args& args) {
  reference::backward<A>(problem, args);
}

template <class A>
void compute(const Problem& problem, const SplitArgs& args) {
  switch (args.pass) {
    case Pass::qk:
      return reference::qk<A>(problem, args.c);
    case Pass::av:
      return reference::av<A>(problem, args.c);
    case Pass::qk_backward:
      return reference::qk_backward<A>(problem, args.c);
    default:
      return reference::av_backward<A>(problem, args.c);
  }
}

constexpr const char* pass_name(const vecina_forward_args&) { return "forward"; }
constexpr const char* pass_name(const vecina_backward_args&) { return "backward"; }
constexpr const char* pass_name(const SplitArgs&) { return "split"; }

// The example's tensors at the addresses of args.
template <class Args>
void move_inputs(const Args& args, Args& example) {
  for (auto tensor :
       {&Args::query, &Args::key, &Args::value, &Args::additional_key, &Args::additional_value,
        &Args::bias, &Args::lengths, &Args::query_lengths, &Args::output, &Args::lse}) {
    example.*tensor = at_address(example.*tensor, args.*tensor);
  }
}
void move_to(const vecina_forward_args& args, vecina_forward_args& example) {
  move_inputs(args, example);
  example.head_scale = at_address(example.head_scale, args.head_scale);
}
void move_to(const vecina_backward_args& args, vecina_backward_args& example) {
  using Args = vecina_backward_args;
  move_inputs(args, example);
  for (auto tensor :
       {&Args::grad_output, &Args::grad_lse, &Args::grad_query, &Args::grad_key, &Args::grad_value,
        &Args::grad_additional_key, &Args::grad_additional_value, &Args::grad_bias}) {
    example.*tensor = at_address(example.*tensor, args.*tensor);
  }
}
// A split call comes through the cache of plans: its strides are the example's.
void move_to(const SplitArgs& args, SplitArgs& example) { example.c = args.c; }

template <template <class> class ArithmeticOf, class Args>
class DefinitionPlan final : public Plan {
 public:
  DefinitionPlan(const char* name, const Problem& problem, const Args& example)
      : name_(name), problem_(problem), example_(example) {}

  using Plan::run;
  Status run(const Args& args, void* /*queue*/) const override {
    Args tensors = example_;
    move_to(args, tensors);
    return with_dtype<ArithmeticOf>(problem_.dtype(),
                                    [&]<class A>(A) { compute<A>(problem_, tensors); });
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "{} {}", "tiles": [], "work": {}, "why": "the definition, one query at a )"
        R"(time on one thread"}})",
        name_, pass_name(example_), problem_.forward_flops());
  }

 private:
  const char* name_;
  const Problem problem_;
  const Args example_;
};

template <template <class> class ArithmeticOf>
class DefinitionBackend final : public Backend {
 public:
  explicit DefinitionBackend(const char* name) : name_(name) {}

  const char* name() const override { return name_; }
  using Backend::why_not;
  std::string why_not(const Problem& problem, Pass pass) const override {
    return pass == Pass::forward ? std::string() : e4m3_why_not(problem, pass);
  }

  Status plan(const Problem& problem, const vecina_forward_args& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }
  Status plan(const Problem& problem, const vecina_backward_args& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }
  Status plan(const Problem& problem, const SplitArgs& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }

  Status merge(const MergeArgs& args, void* /*queue*/) override {
    return with_dtype<ArithmeticOf>(args.outputs[0].dtype,
                                    [&]<class A>(A) { reference::merge<A>(args); });
  }
  Status merge_backward(const MergeBackwardArgs& args, void* /*queue*/) override {
    return with_dtype<ArithmeticOf>(args.outputs[0].dtype,
                                    [&]<class A>(A) { reference::merge_backward<A>(args); });
  }

 private:
  template <class Args>
  Status make_plan(const Problem& problem, const Args& example, std::unique_ptr<Plan>* plan) {
    try {
      *plan = std::make_unique<DefinitionPlan<ArithmeticOf, Args>>(name_, problem, example);
    } catch (const std::bad_alloc&) {
      return out_of_memory("no memory for a plan of the reference loops.");
    }
    return {};
  }

  const char* name_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& /*options*/) {
  return std::make_unique<DefinitionBackend<Exact>>("reference");
}

std::unique_ptr<Backend> make_plain_backend(const BackendOptions& /*options*/) {
  return std::make_unique<DefinitionBackend<Plain>>("plain");
}

}  // namespace vecina::internal
