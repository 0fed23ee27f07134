// SPDX-License-Identifier: MIT
// What a problem's results are, in fp64 and without the library: dense over all pairs of query and
// key, with visibility from definition.h. Slow, short, and the judge of the reference backend.
#ifndef VECINA_TESTS_ORACLE_H_
#define VECINA_TESTS_ORACLE_H_

#include <vector>

#include "cli/conformance.h"
#include "vecina/vecina.h"

namespace vecina::tests {

// Row-major, of the shapes that the tensors of the same names have.
struct OracleOutputs {
  std::vector<double> output, lse;
};
// Empty where the problem has no such input.
struct OracleGradients {
  std::vector<double> query, key, value, additional_key, additional_value, bias;
};

OracleOutputs oracle_forward(const vecina_problem& problem, const cli::Inputs& inputs);
// Of sum(grad_output * output) + sum(grad_lse * lse); grad_lse 0 if not given.
OracleGradients oracle_backward(const vecina_problem& problem, const cli::Inputs& inputs);

// Merged rows of head_dim numbers each: weights are the softmax of the lses.
struct OracleMerge {
  std::vector<double> output, lse;
  std::vector<std::vector<double>> grad_outputs, grad_lses;
};
OracleMerge oracle_merge(const std::vector<std::vector<double>>& outputs,
                         const std::vector<std::vector<double>>& lses,
                         const std::vector<double>& grad_output,
                         const std::vector<double>& grad_lse);

}  // namespace vecina::tests
#endif  // VECINA_TESTS_ORACLE_H_
