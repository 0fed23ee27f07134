// SPDX-License-Identifier: MIT
// What must not change a result: a NaN or infinity in a token outside the window, the number of
// threads, the strides and gaps of tensors, lse wanted or not. On every backend, to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "cuda/hopper_cases.h"
#include "definition.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Row-major positions of the tokens of `counts`.
std::vector<std::vector<int64_t>> positions_of(const std::vector<int64_t>& counts) {
  std::vector<std::vector<int64_t>> positions = {{}};
  for (int64_t count : counts) {
    std::vector<std::vector<int64_t>> longer;
    for (const auto& position : positions) {
      for (int64_t i = 0; i < count; ++i) {
        longer.push_back(position);
        longer.back().push_back(i);
      }
    }
    positions = longer;
  }
  return positions;
}

// sees[output token][key token] by the definition.
std::vector<std::vector<bool>> visibility(const vecina_problem& problem) {
  std::vector<int64_t> num_queries, num_keys;
  for (int a = 0; a < problem.rank; ++a) {
    num_queries.push_back(static_cast<int64_t>(query_tokens(axis_rule(problem, a)).size()));
    num_keys.push_back(problem.extent[a]);
  }
  const auto queries = positions_of(num_queries), keys = positions_of(num_keys);
  std::vector<std::vector<bool>> sees(queries.size(), std::vector<bool>(keys.size(), true));
  for (int a = 0; a < problem.rank; ++a) {
    const auto i = static_cast<size_t>(a);
    const AxisRule axis = axis_rule(problem, a);
    const std::vector<int64_t> tokens = query_tokens(axis);
    std::vector<std::vector<bool>> on_axis(tokens.size(),
                                           std::vector<bool>(static_cast<size_t>(axis.length)));
    for (size_t q = 0; q < tokens.size(); ++q) {
      for (int64_t key : visible_keys(axis, tokens[q])) on_axis[q][static_cast<size_t>(key)] = true;
    }
    for (size_t q = 0; q < queries.size(); ++q) {
      for (size_t k = 0; k < keys.size(); ++k) {
        const auto at = static_cast<size_t>(queries[q][i]);
        if (!on_axis[at][static_cast<size_t>(keys[k][i])]) sees[q][k] = false;
      }
    }
  }
  return sees;
}

// Where each pair stands in a head's bias: [output token][key token], -1 where it is not seen.
std::vector<std::vector<int64_t>> bias_places(const vecina_problem& problem) {
  std::vector<int64_t> num_queries;
  for (int a = 0; a < problem.rank; ++a) {
    num_queries.push_back(static_cast<int64_t>(query_tokens(axis_rule(problem, a)).size()));
  }
  const auto queries = positions_of(num_queries);
  const auto keys = positions_of({problem.extent, problem.extent + problem.rank});
  std::vector<std::vector<int64_t>> places(queries.size(), std::vector<int64_t>(keys.size()));
  const auto sees = visibility(problem);
  for (size_t q = 0; q < queries.size(); ++q) {
    for (size_t k = 0; k < keys.size(); ++k) {
      int64_t place = 0;
      for (int a = 0; a < problem.rank; ++a) {
        const auto i = static_cast<size_t>(a);
        const AxisRule axis = axis_rule(problem, a);
        place = place * (2 * axis.kernel_size - 1) +
                bias_index(axis, queries[q][i] * axis.output_stride, keys[k][i]);
      }
      places[q][k] = sees[q][k] ? place : -1;
    }
  }
  return places;
}

class Containment : public testing::TestWithParam<std::string> {
 protected:
  // Plants `value` in one element of the tensor, runs, and takes it out again.
  cli::Outputs run_with(cli::HostTensor& tensor, int64_t index, double value) {
    const double before = tensor.get(index);
    tensor.set(index, value);
    const cli::Outputs outputs = run_forward(context_.get(), problem_, inputs_);
    tensor.set(index, before);
    return outputs;
  }

  // Rows (batch, output token, head) for which is_reached says yes hold no finite number in the
  // given column (-1: in any, and in lse); all others are what they were, to the bit.
  template <typename IsReached>
  void expect_reaches(const cli::Outputs& clean, const cli::Outputs& actual, int64_t column,
                      bool must_reach, const IsReached& is_reached) {
    const int64_t dim = clean.output.shape().back(), heads = problem_.heads;
    const std::vector<uint64_t> before = bits_of(clean.output), after = bits_of(actual.output);
    const std::vector<uint64_t> lse_before = bits_of(clean.lse), lse_after = bits_of(actual.lse);
    const int64_t tokens = clean.lse.size() / heads / problem_.batch;
    for (int64_t row = 0; row < clean.lse.size(); ++row) {
      const int64_t head = row % heads, token = row / heads % tokens, b = row / heads / tokens;
      const bool reached = is_reached(b, token, head);
      if (!reached || column >= 0) {
        ASSERT_EQ(lse_before[static_cast<size_t>(row)], lse_after[static_cast<size_t>(row)])
            << "lse of batch " << b << " token " << token << " head " << head;
      } else if (must_reach) {
        ASSERT_FALSE(std::isfinite(actual.lse.get(row)))
            << "lse of token " << token << " is " << actual.lse.get(row);
      }
      for (int64_t c = 0; c < dim; ++c) {
        const auto at = static_cast<size_t>(row * dim + c);
        if (reached && (column < 0 || column == c)) {
          if (must_reach) {
            ASSERT_FALSE(std::isfinite(actual.output.get(row * dim + c)))
                << "batch " << b << " token " << token << " head " << head << " column " << c;
          }
        } else {
          ASSERT_EQ(before[at], after[at])
              << "batch " << b << " token " << token << " head " << head << " column " << c;
        }
      }
    }
  }

  // Gaps and offsets that must not change a bit. On a GPU, rows that are not aligned to 16 bytes
  // may take another kernel.
  static std::vector<cli::Placement> placements() {
    if (GetParam() == "cuda") return {{8, 0}, {0, 8}, {24, 16}};
    return {{1, 0}, {0, 1}, {5, 3}};
  }

  cli::ContextPtr context_ = cli::make_context(GetParam(), 2);
  vecina_problem problem_;
  cli::Inputs inputs_;
};
INSTANTIATE_TEST_SUITE_P(Backends, Containment, testing::ValuesIn(backend_names()),
                         [](const auto& row) { return row.param; });

constexpr const char* kWindows[] = {
    "1d 37 kernel_size 7 batch 2 heads 2 head_dim 16",
    "1d 37 kernel_size 8 causal heads 4 heads_kv 2 head_dim 12",
    "1d 45 kernel_size 6 stride 4 dilation 2 heads 2 head_dim 16 additional 2",
    "1d 33 kernel_size 5 output_stride 3 heads 2 head_dim 16",
    "1d 19 kernel_size 19 causal heads 2 head_dim 16",
    "1d 100 kernel_size 33 heads 1 head_dim 8 head_dim_value 20",
    "2d 9x19 kernel_size 3x5 dilation 2x1 heads 2 head_dim 16",
    "2d 8x9 kernel_size 5x4 stride 2x3 causal 0x1 heads 2 head_dim 16 additional 1",
    "2d 5x6 kernel_size 5x3 heads 2 head_dim 30",
    "3d 4x5x6 kernel_size 3x2x3 causal 1x0x0 heads 2 head_dim 8",
    "attention 7x20 causal heads 2 head_dim 16",
    "1d 220 kernel_size 70 output_stride 3 dilation 2 heads 2 head_dim 16",
    "2d 19x21 kernel_size 9x8 causal 0x1 heads 2 head_dim 24 additional 1 bias",
    "attention 40x80 heads 1 head_dim 16",
    "1d 100 kernel_size 70 heads 2 head_dim 264 head_dim_value 272",
};

TEST_P(Containment, NonFiniteTokensReachTheirWindowsOnly) {
  for (const char* dtype : {"f32", "f64", "f16", "bf16"}) {
    for (const char* line : kWindows) {
      problem_ = cli::parse_problem(std::string(line) + " dtype " + dtype);
      SCOPED_TRACE(GetParam() + ": " + cli::print_problem(problem_));
      if (!why_not(context_.get(), GetParam(), problem_).empty()) continue;
      inputs_ = cli::random_inputs(problem_, 21);
      const cli::Outputs clean = run_forward(context_.get(), problem_, inputs_);
      const auto sees = visibility(problem_);
      const auto num_keys = static_cast<int64_t>(sees[0].size());
      const int64_t heads_kv = problem_.heads_kv, group = problem_.heads / heads_kv;
      cli::Random random(22);
      for (int i = 0; i < 12; ++i) {
        // The first and last tokens, then any.
        const int64_t token = i == 0 ? 0 : i == 1 ? num_keys - 1 : random.integer(0, num_keys - 1);
        const int64_t head = random.integer(0, heads_kv - 1);
        const int64_t sample = random.integer(0, problem_.batch - 1);
        const auto is_reached = [&](int64_t b, int64_t query, int64_t query_head) {
          return b == sample && query_head / group == head &&
                 sees[static_cast<size_t>(query)][static_cast<size_t>(token)];
        };
        const int64_t row = (sample * num_keys + token) * heads_kv + head;
        const int64_t column = random.integer(0, problem_.head_dim - 1);
        const int64_t value_column = random.integer(0, problem_.head_dim_value - 1);
        SCOPED_TRACE("token " + std::to_string(token) + " key head " + std::to_string(head));
        for (double value : {double{NAN}, kInfinity, -kInfinity}) {
          expect_reaches(clean, run_with(inputs_.key, row * problem_.head_dim + column, value), -1,
                         std::isnan(value), is_reached);
          expect_reaches(
              clean, run_with(inputs_.value, row * problem_.head_dim_value + value_column, value),
              value_column, true, is_reached);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Containment, NonFiniteQueriesReachThemselvesOnly) {
  for (const char* line : kWindows) {
    problem_ = cli::parse_problem(line);
    SCOPED_TRACE(GetParam() + ": " + line);
    inputs_ = cli::random_inputs(problem_, 23);
    const cli::Outputs clean = run_forward(context_.get(), problem_, inputs_);
    const int64_t output_stride = problem_.output_stride[0];
    const int64_t tokens = clean.lse.size() / problem_.heads / problem_.batch;
    const int64_t query_tokens =
        inputs_.query.size() / problem_.head_dim / problem_.heads / problem_.batch;
    for (int64_t token : {int64_t{0}, tokens / 2, tokens - 1}) {
      const int64_t head = problem_.heads - 1, sample = problem_.batch - 1;
      const int64_t query_token = problem_.rank == 1 ? token * output_stride : token;
      const int64_t row = (sample * query_tokens + query_token) * problem_.heads + head;
      const auto is_reached = [&](int64_t b, int64_t t, int64_t h) {
        return b == sample && t == token && h == head;
      };
      expect_reaches(clean, run_with(inputs_.query, row * problem_.head_dim, NAN), -1, true,
                     is_reached);
      expect_reaches(clean, run_with(inputs_.query, row * problem_.head_dim, kInfinity), -1, false,
                     is_reached);
      if (HasFatalFailure()) return;
    }
  }
}

// Of tiles that many queries meet as a whole: on Hopper, where a value is not kept apart.
TEST_P(Containment, NonFiniteQueriesAndKeysOfLargeTilesReachTheirWindowsOnly) {
  if (GetParam() == "reference") GTEST_SKIP() << "minutes, of what others are compared with";
  for (const char* line : internal::cuda::kSmallest) {
    problem_ = cli::parse_problem(line);
    SCOPED_TRACE(GetParam() + ": " + line);
    inputs_ = cli::random_inputs(problem_, 30);
    const cli::Outputs clean = run_forward(context_.get(), problem_, inputs_);
    const auto sees = visibility(problem_);
    const auto num_queries = static_cast<int64_t>(sees.size());
    const auto num_keys = static_cast<int64_t>(sees[0].size());
    const int64_t heads = problem_.heads, heads_kv = problem_.heads_kv;
    cli::Random random(31);
    const auto any_of = [&](int i, int64_t count) {  // the first and the last, then any
      return i == 0 ? 0 : i == 1 ? count - 1 : random.integer(0, count - 1);
    };
    for (int i = 0; i < 4; ++i) {
      const int64_t sample = random.integer(0, problem_.batch - 1);
      const int64_t column = random.integer(0, problem_.head_dim - 1);
      const int64_t key = any_of(i, num_keys), head_kv = random.integer(0, heads_kv - 1);
      const int64_t query = any_of(i, num_queries), head = random.integer(0, heads - 1);
      const auto sees_key = [&](int64_t b, int64_t t, int64_t h) {
        return b == sample && h / (heads / heads_kv) == head_kv &&
               sees[static_cast<size_t>(t)][static_cast<size_t>(key)];
      };
      const auto is_query = [&](int64_t b, int64_t t, int64_t h) {
        return b == sample && h == head && t == query;
      };
      const int64_t key_row = (sample * num_keys + key) * heads_kv + head_kv;
      const int64_t query_row = (sample * num_queries + query) * heads + head;
      for (double value : {double{NAN}, kInfinity, -kInfinity}) {
        SCOPED_TRACE(std::to_string(value) + " in key " + std::to_string(key) + " of head " +
                     std::to_string(head_kv) + ", query " + std::to_string(query) + " of head " +
                     std::to_string(head));
        expect_reaches(clean, run_with(inputs_.key, key_row * problem_.head_dim + column, value),
                       -1, std::isnan(value), sees_key);
        expect_reaches(clean,
                       run_with(inputs_.query, query_row * problem_.head_dim + column, value), -1,
                       std::isnan(value), is_query);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Containment, NonFiniteAdditionalTokensReachTheirSample) {
  problem_ =
      cli::parse_problem("1d 20 kernel_size 5 batch 2 heads 4 heads_kv 2 head_dim 8 additional 3");
  inputs_ = cli::random_inputs(problem_, 24);
  const cli::Outputs clean = run_forward(context_.get(), problem_, inputs_);
  const int64_t row = (1 * 3 + 2) * 2 + 1;  // sample 1, token 2, key head 1
  const auto is_reached = [](int64_t b, int64_t, int64_t h) { return b == 1 && h / 2 == 1; };
  expect_reaches(clean, run_with(inputs_.additional_key, row * 8 + 3, NAN), -1, true, is_reached);
  expect_reaches(clean, run_with(inputs_.additional_value, row * 8 + 3, NAN), 3, true, is_reached);
}

constexpr const char* kSizes[] = {
    "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32",
    "1d 256 kernel_size 7 batch 2 heads 8 heads_kv 2 head_dim 32 additional 4",
    "1d 333 kernel_size 9 stride 4 causal heads 3 head_dim 30",
    "1d 64 kernel_size 7 stride 3 heads 1 head_dim 32",
    "1d 64 kernel_size 4 causal heads 1 head_dim 32",
    "1d 257 kernel_size 7 batch 4 heads 8 head_dim 32",  // two queries a thread
    "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32",  // two heads a block where lse is wanted
    "2d 9x64 kernel_size 3x4 causal 0x1 heads 1 head_dim 32",
    "2d 19x33 kernel_size 5x8 dilation 2x3 heads 2 head_dim 16 head_dim_value 24",
    "3d 7x8x9 kernel_size 3 batch 3 heads 2 head_dim 16",
    "2d 16x16 kernel_size 16 batch 2 heads 4 head_dim 32",
    "2d 21x22 kernel_size 5 output_stride 2x3 heads 2 head_dim 12",
    "attention 70x300 causal heads 4 heads_kv 1 head_dim 64",
};

// Same inputs, same bits: whatever the threads, gaps and offsets, and with or without lse.
TEST_P(Containment, ResultsDependOnNothingElse) {
  const cli::ContextPtr one = cli::make_context(GetParam(), 1);
  const cli::ContextPtr three = cli::make_context(GetParam(), 3);
  for (const char* dtype : {"f32", "f64", "f16", "bf16"}) {
    for (const char* line : kSizes) {
      problem_ = cli::parse_problem(std::string(line) + " dtype " + dtype);
      SCOPED_TRACE(GetParam() + ": " + cli::print_problem(problem_));
      const cli::Inputs inputs = cli::random_inputs(problem_, 25);
      const cli::Outputs expected = run_forward(one.get(), problem_, inputs);
      const std::vector<uint64_t> output = bits_of(expected.output), lse = bits_of(expected.lse);
      for (vecina_context* context : {one.get(), context_.get(), three.get()}) {
        const cli::Outputs again = run_forward(context, problem_, inputs);
        ASSERT_EQ(bits_of(again.output), output);
        ASSERT_EQ(bits_of(again.lse), lse);
      }
      for (const cli::Placement placement : placements()) {
        const cli::Inputs moved = cli::random_inputs(problem_, 25, placement);
        const cli::Outputs again = run_forward(context_.get(), problem_, moved, placement);
        ASSERT_EQ(bits_of(again.output), output)
            << "gap " << placement.gap << " offset " << placement.offset;
        ASSERT_EQ(bits_of(again.lse), lse);
        ASSERT_TRUE(again.output.gaps_intact());
        ASSERT_TRUE(again.lse.gaps_intact());
      }
      cli::Outputs alone = cli::make_outputs(problem_);
      alone.lse = {};
      const vecina_forward_args args = cli::forward_args(inputs, alone);
      ASSERT_EQ(vecina_forward(context_.get(), &problem_, &args, nullptr), VECINA_OK);
      ASSERT_EQ(bits_of(alone.output), output) << "without lse";
    }
  }
}

// Strides in another order than the shape: heads before tokens, batch innermost but one.
TEST_P(Containment, PermutedStrides) {
  problem_ = cli::parse_problem("2d 7x9 kernel_size 3x5 batch 2 heads 3 head_dim 8");
  const cli::Inputs inputs = cli::random_inputs(problem_, 26);
  const cli::Outputs expected = run_forward(context_.get(), problem_, inputs);
  const int64_t shape[] = {2, 7, 9, 3, 8};
  for (const std::vector<int>& order :
       {std::vector<int>{3, 0, 1, 2}, {0, 3, 2, 1}, {2, 1, 3, 0}, {1, 0, 3, 2}}) {
    int64_t strides[5] = {0, 0, 0, 0, 1};
    int64_t stride = 8;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      strides[*d] = stride;
      stride *= shape[*d];
    }
    std::vector<cli::HostTensor> storage;
    const auto permuted = [&](const cli::HostTensor& from, int64_t sign) {
      cli::HostTensor to({2 * 7 * 9 * 3, 8}, VECINA_F32);
      vecina_tensor view = from.view();
      view.data = to.view().data;
      std::copy(strides, strides + 5, view.strides);
      if (sign < 0) {  // the outer token axis backwards
        view.byte_offset = strides[1] * 6 * 4;
        view.strides[1] = -strides[1];
      }
      for (int64_t i = 0; i < from.size(); ++i) {
        int64_t rest = i, at = view.byte_offset / 4;
        for (int d = 4; d >= 0; --d) {
          at += rest % shape[d] * view.strides[d];
          rest /= shape[d];
        }
        to.set(at, from.get(i));
      }
      storage.push_back(to);
      return view;
    };
    for (int64_t sign : {1, -1}) {
      storage.clear();
      vecina_forward_args args = {};
      args.struct_size = sizeof(args);
      args.query = permuted(inputs.query, sign);
      args.key = permuted(inputs.key, sign);
      args.value = permuted(inputs.value, sign);
      args.output = permuted(expected.output, sign);
      cli::HostTensor expected_storage({2 * 7 * 9 * 3, 8}, VECINA_F32);
      for (int64_t i = 0; i < storage[3].size(); ++i) {
        expected_storage.set(i, storage[3].get(i));
      }
      storage[3].fill(NAN);
      ASSERT_EQ(vecina_forward(context_.get(), &problem_, &args, nullptr), VECINA_OK)
          << vecina_last_error();
      ASSERT_EQ(bits_of(storage[3]), bits_of(expected_storage)) << "sign " << sign;
    }
  }
}

using Bits = std::vector<std::vector<uint64_t>>;  // of each gradient that there is

constexpr cli::HostTensor cli::Gradients::*kGradients[] = {&cli::Gradients::query,
                                                           &cli::Gradients::key,
                                                           &cli::Gradients::value,
                                                           &cli::Gradients::additional_key,
                                                           &cli::Gradients::additional_value,
                                                           &cli::Gradients::bias};

Bits gradient_bits(const cli::Gradients& gradients) {
  Bits bits;
  for (auto gradient : kGradients) {
    if ((gradients.*gradient).given()) bits.push_back(bits_of(gradients.*gradient));
  }
  return bits;
}

// How the work is cut, and so the order of every sum, does not depend on the threads.
TEST_P(Containment, GradientsDependOnNothingElse) {
  const cli::ContextPtr one = cli::make_context(GetParam(), 1);
  const cli::ContextPtr seven = cli::make_context(GetParam(), 7);
  std::vector<std::string> lines(std::begin(kSizes), std::end(kSizes));
  lines.insert(lines.end(), {"2d 23x19 kernel_size 7x10 batch 3 heads 3 head_dim 64 bias",
                             "2d 33x40 kernel_size 7 heads 1 head_dim 32",  // one head: is cut
                             "1d 700 kernel_size 12 dilation 2 heads 1 head_dim 16 additional 3",
                             "attention 200x90 heads 1 head_dim 20 head_dim_value 36"});
  for (const char* dtype : {"f32", "f64", "f16", "bf16"}) {
    for (const std::string& line : lines) {
      problem_ = cli::parse_problem(line + " dtype " + dtype);
      SCOPED_TRACE(GetParam() + ": " + cli::print_problem(problem_));
      const cli::Inputs inputs = cli::random_inputs(problem_, 27);
      const cli::Outputs outputs = run_forward(one.get(), problem_, inputs);
      const cli::Gradients expected = run_backward(one.get(), problem_, inputs, outputs);
      const Bits bits = gradient_bits(expected);
      for (vecina_context* context : {one.get(), context_.get(), seven.get()}) {
        ASSERT_EQ(gradient_bits(run_backward(context, problem_, inputs, outputs)), bits);
      }
      for (const cli::Placement placement : placements()) {
        const cli::Inputs moved = cli::random_inputs(problem_, 27, placement);
        const cli::Gradients again =
            run_backward(context_.get(), problem_, moved, outputs, placement);
        ASSERT_EQ(gradient_bits(again), bits)
            << "gap " << placement.gap << " offset " << placement.offset;
        for (auto gradient : kGradients) {
          ASSERT_TRUE(!(again.*gradient).given() || (again.*gradient).gaps_intact());
        }
      }
      for (auto gradient : kGradients) {  // one alone
        if (!(expected.*gradient).given()) continue;
        cli::Gradients alone;
        alone.*gradient = cli::make_gradients(problem_).*gradient;
        const vecina_backward_args args = cli::backward_args(inputs, outputs, alone);
        ASSERT_EQ(vecina_backward(context_.get(), &problem_, &args, nullptr), VECINA_OK)
            << vecina_last_error();
        ASSERT_EQ(bits_of(alone.*gradient), bits_of(expected.*gradient));
      }
    }
  }
}

// Whose gradients a GPU computes on tensor cores, where masked pairs are multiplied too: halos of
// one plane and of many, tiles with and without products of warpgroups, and sums in any order, or
// in parts of the columns.
constexpr const char* kGradientsOnTensorCores[] = {
    "2d 23x19 kernel_size 7x10 batch 3 heads 3 head_dim 64 bias dtype bf16",
    "2d 9x13 kernel_size 5x4 stride 2x1 batch 2 heads 2 head_dim 32 dtype bf16",
    "3d 4x5x6 kernel_size 3x3x3 causal 1x0x0 heads 2 heads_kv 1 head_dim 64 dtype f16",
    "2d 9x11 kernel_size 5 dilation 1x2 heads 2 head_dim 48 dtype bf16",
    "2d 12x11 kernel_size 9x8 causal 1x0 heads 2 heads_kv 1 head_dim 120 dtype bf16",
    "1d 150 kernel_size 70 heads 2 head_dim 128 dtype bf16",
    "2d 13x11 kernel_size 9x8 heads 2 heads_kv 1 head_dim 64 head_dim_value 128 dtype f16",
    "1d 100 kernel_size 70 heads 2 heads_kv 1 head_dim 272 head_dim_value 320 bias dtype f16",
    "2d 12x11 kernel_size 5x7 heads 2 head_dim 168 dtype bf16",
    "2d 13x11 kernel_size 9x8 heads 2 head_dim 128 allow nondeterministic dtype bf16",
    "2d 12x11 kernel_size 9x8 heads 2 heads_kv 1 head_dim 120 allow nondeterministic dtype bf16",
};

// A NaN in one token of key, value or grad_output: no other gradient than of the queries that see
// the token, and of the keys that those see, changes by a bit (added in any order: by more than
// that).
TEST_P(Containment, NonFiniteTokensReachGradientsOfTheirWindowsOnly) {
  std::vector<std::string> lines(std::begin(kWindows), std::end(kWindows));
  lines.insert(lines.end(), std::begin(kGradientsOnTensorCores), std::end(kGradientsOnTensorCores));
  for (const char* line : kWindows) lines.push_back(std::string(line) + " dtype bf16");
  for (const std::string& line : lines) {
    problem_ = cli::parse_problem(line);
    SCOPED_TRACE(GetParam() + ": " + line);
    const bool is_exact = (problem_.flags & VECINA_NONDETERMINISTIC_BACKWARD) == 0;
    inputs_ = cli::random_inputs(problem_, 28);
    const auto gradients_with = [&](cli::HostTensor& tensor, int64_t index) {
      const double before = tensor.get(index);
      tensor.set(index, NAN);
      const cli::Outputs outputs = run_forward(context_.get(), problem_, inputs_);
      const cli::Gradients gradients = run_backward(context_.get(), problem_, inputs_, outputs);
      tensor.set(index, before);
      return gradients;
    };
    const cli::Outputs outputs = run_forward(context_.get(), problem_, inputs_);
    const cli::Gradients clean = run_backward(context_.get(), problem_, inputs_, outputs);
    const auto sees = visibility(problem_);
    const bool has_bias = clean.bias.given();
    const auto places =
        has_bias ? bias_places(problem_) : std::vector<std::vector<int64_t>>(sees.size());
    const auto num_queries = static_cast<int64_t>(sees.size());
    const auto num_keys = static_cast<int64_t>(sees[0].size());
    const int64_t heads_kv = problem_.heads_kv, group = problem_.heads / heads_kv;
    std::vector<int64_t> query_token;  // of each output token
    int64_t num_query_tokens = 1;
    for (int a = 0; a < problem_.rank; ++a) {
      const AxisRule axis = axis_rule(problem_, a);
      const int64_t extent =
          problem_.kind == VECINA_ATTENTION ? problem_.query_extent[a] : problem_.extent[a];
      num_query_tokens *= extent;
      std::vector<int64_t> longer;
      if (a == 0) query_token = {0};
      for (int64_t outer : query_token) {
        for (int64_t token : query_tokens(axis)) longer.push_back(outer * extent + token);
      }
      query_token = longer;
    }
    ASSERT_EQ(static_cast<int64_t>(query_token.size()), num_queries);

    const auto expect_unchanged = [&](const char* name, const cli::HostTensor& before,
                                      const cli::HostTensor& after, int64_t heads,
                                      const auto& may_change) {
      const std::vector<uint64_t> old_bits = bits_of(before), new_bits = bits_of(after);
      const int64_t dim = before.shape().back();
      const int64_t tokens = before.size() / dim / heads / problem_.batch;
      for (int64_t i = 0; i < before.size(); ++i) {
        const int64_t row = i / dim;
        if (may_change(row / heads / tokens, row / heads % tokens, row % heads)) continue;
        const auto at = static_cast<size_t>(i);
        // Of sums in any order the last bits differ.
        const bool is_same = is_exact ? old_bits[at] == new_bits[at]
                                      : std::abs(before.get(i) - after.get(i)) <=
                                            0.02 * (1.0 + std::abs(before.get(i)));
        ASSERT_TRUE(is_same) << name << " token " << row / heads % tokens << " head " << row % heads
                             << ": " << after.get(i) << " instead of " << before.get(i);
      }
    };
    const auto expect_contained = [&](const cli::Gradients& actual, int64_t sample, int64_t head,
                                      const std::vector<bool>& reached, bool one_head,
                                      int64_t query_head) {
      std::vector<bool> query_reached(static_cast<size_t>(num_query_tokens));
      std::vector<bool> key_reached(static_cast<size_t>(num_keys));
      for (int64_t q = 0; q < num_queries; ++q) {
        if (!reached[static_cast<size_t>(q)]) continue;
        query_reached[static_cast<size_t>(query_token[static_cast<size_t>(q)])] = true;
        for (int64_t k = 0; k < num_keys; ++k) {
          if (sees[static_cast<size_t>(q)][static_cast<size_t>(k)]) {
            key_reached[static_cast<size_t>(k)] = true;
          }
        }
      }
      expect_unchanged("grad_query", clean.query, actual.query, problem_.heads,
                       [&](int64_t b, int64_t token, int64_t h) {
                         return b == sample && h / group == head &&
                                (!one_head || h == query_head) &&
                                query_reached[static_cast<size_t>(token)];
                       });
      const auto key_may_change = [&](int64_t b, int64_t token, int64_t h) {
        return b == sample && h == head && key_reached[static_cast<size_t>(token)];
      };
      expect_unchanged("grad_key", clean.key, actual.key, heads_kv, key_may_change);
      expect_unchanged("grad_value", clean.value, actual.value, heads_kv, key_may_change);
      if (!has_bias) return;
      // Of the head, or heads: what queries that the NaN reaches use. Samples share a bias.
      const int64_t of_head = clean.bias.size() / problem_.heads;
      std::vector<bool> is_used(static_cast<size_t>(of_head));
      for (int64_t q = 0; q < num_queries; ++q) {
        if (!reached[static_cast<size_t>(q)]) continue;
        for (int64_t place : places[static_cast<size_t>(q)]) {
          if (place >= 0) is_used[static_cast<size_t>(place)] = true;
        }
      }
      const std::vector<uint64_t> before = bits_of(clean.bias), after = bits_of(actual.bias);
      for (int64_t i = 0; i < clean.bias.size(); ++i) {
        const int64_t h = i / of_head;
        const bool is_of_head = one_head ? h == query_head : h / group == head;
        const auto at = static_cast<size_t>(i);
        if (is_of_head && is_used[static_cast<size_t>(i % of_head)]) continue;
        ASSERT_EQ(before[at], after[at])
            << "grad_bias head " << h << " relative position " << i % of_head;
      }
    };

    cli::Random random(29);
    for (int i = 0; i < 6; ++i) {
      const int64_t token = i == 0 ? 0 : i == 1 ? num_keys - 1 : random.integer(0, num_keys - 1);
      const int64_t head = random.integer(0, heads_kv - 1);
      const int64_t sample = random.integer(0, problem_.batch - 1);
      const int64_t row = (sample * num_keys + token) * heads_kv + head;
      std::vector<bool> reached;
      for (const auto& keys : sees) reached.push_back(keys[static_cast<size_t>(token)]);
      SCOPED_TRACE("key token " + std::to_string(token) + " head " + std::to_string(head));
      const cli::Gradients of_key = gradients_with(inputs_.key, row * problem_.head_dim);
      expect_contained(of_key, sample, head, reached, false, 0);
      for (int64_t q = 0; q < num_queries; ++q) {
        if (!reached[static_cast<size_t>(q)]) continue;
        const int64_t query_row =
            (sample * num_query_tokens + query_token[static_cast<size_t>(q)]) * problem_.heads +
            head * group;
        ASSERT_TRUE(std::isnan(of_key.query.get(query_row * problem_.head_dim))) << "query " << q;
      }
      expect_contained(gradients_with(inputs_.value, row * problem_.head_dim_value), sample, head,
                       reached, false, 0);
      if (HasFatalFailure()) return;
    }
    for (int64_t q : {int64_t{0}, num_queries / 2, num_queries - 1}) {
      const int64_t head = problem_.heads - 1, sample = problem_.batch - 1;
      SCOPED_TRACE("query " + std::to_string(q));
      std::vector<bool> reached(static_cast<size_t>(num_queries));
      reached[static_cast<size_t>(q)] = true;
      const int64_t output_row = (sample * num_queries + q) * problem_.heads + head;
      const int64_t query_row =
          (sample * num_query_tokens + query_token[static_cast<size_t>(q)]) * problem_.heads + head;
      expect_contained(gradients_with(inputs_.grad_output, output_row * problem_.head_dim_value),
                       sample, head / group, reached, true, head);
      expect_contained(gradients_with(inputs_.query, query_row * problem_.head_dim), sample,
                       head / group, reached, true, head);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace vecina::tests
