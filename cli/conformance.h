// SPDX-License-Identifier: MIT
// The rule by which a backend is right, used by `vecina check` and by the tests.
//
// A result may err by twice what the same maths does when carried out plainly in the problem's
// dtype (backend "plain"), plus 1e-6 (f64: 1e-13) of the largest magnitude; both are measured
// against "reference". Plain maths is right by luck now and then, above all where a tensor has few
// numbers: before a result fails, other numbers of the same problem say what it errs by. lse: 2e-6
// * max(1, |lse|) for f32, 1e-12 for f64, 1e-5 for f16 and bf16; for f32 and f64 twice the plain
// error where that is more: large logits that cancel in the logarithm cost every sum in the dtype
// its last digits. So with e4m3, where plain sums of products have the 14 bits that tensor cores
// keep, and logits are not rounded further.
#ifndef VECINA_CLI_CONFORMANCE_H_
#define VECINA_CLI_CONFORMANCE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "cli/random.h"
#include "vecina/vecina.h"

namespace vecina::cli {

using ContextPtr = std::unique_ptr<vecina_context, void (*)(vecina_context*)>;
// Throws std::runtime_error with the library's sentence. threads 0: as many as there are cores.
ContextPtr make_context(const std::string& backend, int threads = 0);

// Throws std::invalid_argument with the library's sentence.
vecina_problem parse_problem(const std::string& line);
std::string print_problem(const vecina_problem& problem);

struct Inputs {
  HostTensor query, key, value, additional_key, additional_value, bias, lengths, query_lengths;
  HostTensor head_scale;  // with e4m3
  HostTensor grad_output, grad_lse;
};
// Inputs of the right shapes, without numbers and lengths.
Inputs make_inputs(const vecina_problem& problem, Placement placement = {});
// Values normal(0, 1) rounded to the dtype; lengths valid for the problem; with e4m3 every other
// seed has a head_scale of 2^normal(0, 1). Same seed, same bits. If they are only reserved, lengths
// alone.
Inputs random_inputs(const vecina_problem& problem, uint64_t seed, Placement placement = {});

struct Outputs {
  HostTensor output, lse;
};
// Outputs of the right shapes, filled with NaN.
Outputs make_outputs(const vecina_problem& problem, Placement placement = {});
vecina_forward_args forward_args(const Inputs& inputs, const Outputs& outputs);

struct Gradients {
  HostTensor query, key, value, additional_key, additional_value, bias;
};
Gradients make_gradients(const vecina_problem& problem, Placement placement = {});
vecina_backward_args backward_args(const Inputs& inputs, const Outputs& outputs,
                                   const Gradients& gradients);

// The same problem in a wider dtype, on the same numbers: what "exact" is computed from. e4m3
// stays.
vecina_problem widened(vecina_problem problem, vecina_dtype dtype = VECINA_F64);
Inputs widened(const Inputs& inputs, vecina_dtype dtype = VECINA_F64);

struct Verdict {
  bool passed = false;
  double worst = 0.0;  // largest error as a share of what is allowed; above 1 fails
  std::string detail;  // what failed, with the numbers; empty if passed
};
// The largest error of `actual` against `exact`, allowed 2 x that of `plain` + the floor. A NaN or
// infinity in actual must stand where exact has one. exact may be wider than the other two.
// plain_error: what plain erred by on other numbers. problem_dtype: VECINA_E4M3 if query and key
// are.
Verdict compare(const std::string& name, const HostTensor& actual, const HostTensor& exact,
                const HostTensor& plain, int32_t problem_dtype, double plain_error = 0.0);
Verdict compare_lse(const HostTensor& actual, const HostTensor& exact, const HostTensor& plain,
                    int32_t problem_dtype, double plain_error = 0.0);

// What a backend made of one draw of numbers; only tensors that were asked for.
struct NamedTensor {
  std::string name;
  HostTensor tensor;
};
using Results = std::vector<NamedTensor>;
// Those that were asked for, by the names of vecina_backward_args.
Results named(const Gradients& gradients);
// What the two yardsticks made of the same numbers: the same tensors in the same order.
struct Yardsticks {
  Results exact, plain;
};
// `draw` gives the yardsticks for the numbers of a seed, `actual` are the results for those of
// `seed`. Bytes around `actual` must be as they were.
Verdict judge(const Results& actual, uint64_t seed, int32_t problem_dtype,
              const std::function<Yardsticks(uint64_t)>& draw);

// Compares backends on one problem after another; keeps the contexts of reference and plain.
class Checker {
 public:
  explicit Checker(const std::string& backend, int threads = 0);
  // Empty if the backend takes the problem, else its sentence.
  std::string why_not(const vecina_problem& problem) const;
  // Forward, with and without lse, in the placement that the seed picks: outputs pre-filled with
  // NaN, guard pages, strided and shifted inputs.
  Verdict check_forward(const vecina_problem& problem, uint64_t seed);
  // What it says of results that somebody else made of the numbers of that seed.
  Verdict judge_forward(const vecina_problem& problem, uint64_t seed, const Results& actual);
  // Every gradient, in the placement that the seed picks; each backend starts from its own output
  // and lse. Throws Unsupported (errors.h) if the backend has no backward of this problem.
  Verdict check_backward(const vecina_problem& problem, uint64_t seed);
  // What it says of gradients that somebody else made of the numbers of that seed.
  Verdict judge_backward(const vecina_problem& problem, uint64_t seed, const Results& actual);
  // The split form: qk, av and the gradients of both, of a problem with equal lengths. Throws
  // Unsupported if the backend has none.
  Verdict check_split(const vecina_problem& problem, uint64_t seed);
  const std::string& backend() const { return backend_; }
  vecina_context* context() const { return actual_.get(); }

 private:
  std::string backend_;
  ContextPtr actual_, reference_, plain_;
};

// A small valid problem with every feature of the definition possible (lengths and bias included
// if `everything`; without, the fields that the fast backends have).
vecina_problem random_problem(Random& random, bool everything = false);
// True if the reference's loops take milliseconds, as for every random problem.
bool is_quick(const vecina_problem& problem);
// Where the checker puts the tensors of a case with this seed.
Placement random_placement(uint64_t seed);

}  // namespace vecina::cli
#endif  // VECINA_CLI_CONFORMANCE_H_
