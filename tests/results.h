// SPDX-License-Identifier: MIT
// Running a problem in a test, and comparing tensors with expected numbers.
#ifndef VECINA_TESTS_RESULTS_H_
#define VECINA_TESTS_RESULTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "vecina/vecina.h"

namespace vecina::tests {

// The backends that can run here, in order of preference.
std::vector<std::string> backend_names();
// Why the context's backend does not take the problem; empty if it does.
std::string why_not(vecina_context* context, const std::string& backend,
                    const vecina_problem& problem);

// Each fails the test with the library's sentence if the call fails.
cli::Outputs run_forward(vecina_context* context, const vecina_problem& problem,
                         const cli::Inputs& inputs, cli::Placement placement = {});
cli::Gradients run_backward(vecina_context* context, const vecina_problem& problem,
                            const cli::Inputs& inputs, const cli::Outputs& outputs,
                            cli::Placement placement = {});

std::vector<double> values_of(const cli::HostTensor& tensor);
// The bytes of the elements, in order, gaps left out.
std::vector<uint64_t> bits_of(const cli::HostTensor& tensor);

// Every |actual - expected| is at most `relative` x the largest |expected| + `absolute`; where
// expected is not finite, actual is the same.
void expect_close(const std::string& name, const std::vector<double>& actual,
                  const std::vector<double>& expected, double relative, double absolute = 0.0);
void expect_close(const std::string& name, const cli::HostTensor& actual,
                  const std::vector<double>& expected, double relative, double absolute = 0.0);

// Actual is expected, correctly rounded to its dtype, give or take `absolute` before the rounding.
void expect_rounded(const std::string& name, const cli::HostTensor& actual,
                    const std::vector<double>& expected, double absolute);

// The last error must hold each of the words.
void expect_last_error(const std::vector<std::string>& words);

}  // namespace vecina::tests
#endif  // VECINA_TESTS_RESULTS_H_
