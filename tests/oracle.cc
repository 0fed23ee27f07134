// SPDX-License-Identifier: MIT
// One loop over (sample, query, head): logits of every key, those not visible -infinity, softmax,
// then sums over every key. Backward is the derivative of the softmax written out.
#include "oracle.h"

#include <array>
#include <cmath>
#include <limits>

#include "definition.h"
#include "results.h"

namespace vecina::tests {
namespace {

using Position = std::array<int64_t, 3>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

size_t index_of(int64_t row, int64_t width, int64_t column) {
  return static_cast<size_t>(row * width + column);
}

struct Token {
  int64_t row;  // of the tensor, counting tokens of all samples
  Position position;
};

// A sample's queries (with the rows of query and output), its keys, and who sees whom.
struct Sample {
  int64_t index;
  std::array<AxisRule, 3> axes;
  std::vector<Token> queries, keys;
  std::vector<int64_t> output_rows;
  std::array<std::vector<std::vector<bool>>, 3> seen;  // [axis][query token][key token]

  bool sees(const Token& query, const Token& key) const {
    for (size_t a = 0; a < 3; ++a) {
      const auto q = static_cast<size_t>(query.position[a]);
      const auto k = static_cast<size_t>(key.position[a]);
      if (!seen[a][q][k]) return false;
    }
    return true;
  }
};

// Calls body for each position of the box, row-major, with the row within `whole`.
template <typename Body>
void for_each_token(const std::array<std::vector<int64_t>, 3>& tokens, const Position& whole,
                    const Body& body) {
  for (int64_t x : tokens[0]) {
    for (int64_t y : tokens[1]) {
      for (int64_t z : tokens[2]) body((x * whole[1] + y) * whole[2] + z, Position{x, y, z});
    }
  }
}

std::vector<int64_t> count_to(int64_t end) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < end; ++i) values.push_back(i);
  return values;
}

// The samples of a problem; first_* count the tokens of the samples before (packed).
std::vector<Sample> samples_of(const vecina_problem& problem, const cli::Inputs& inputs) {
  const bool is_packed = problem.lengths == VECINA_LENGTHS_PACKED;
  const bool is_equal = problem.lengths == VECINA_LENGTHS_EQUAL;
  const int64_t count = is_packed ? problem.samples : problem.batch;
  const cli::HostTensor& query_lengths =
      inputs.query_lengths.given() ? inputs.query_lengths : inputs.lengths;
  std::vector<Sample> samples;
  int64_t first_query = 0, first_key = 0, first_output = 0;
  for (int64_t s = 0; s < count; ++s) {
    Sample sample;
    sample.index = s;
    Position query_box = {1, 1, 1}, key_box = {1, 1, 1}, output_box = {1, 1, 1};
    std::array<std::vector<int64_t>, 3> queries, keys, outputs;
    for (int a = 0; a < 3; ++a) {
      const auto i = static_cast<size_t>(a);
      AxisRule rule = {1, 1, 1, 1, 1, 1, false, false};  // axes beyond the rank
      if (a < problem.rank) rule = axis_rule(problem, a);
      query_box[i] = rule.query_length;
      key_box[i] = rule.length;
      output_box[i] = static_cast<int64_t>(query_tokens(rule).size());
      if (!is_equal && a < problem.rank) {
        rule.length = static_cast<int64_t>(inputs.lengths.get(s * problem.rank + a));
        rule.query_length = static_cast<int64_t>(query_lengths.get(s * problem.rank + a));
      }
      sample.axes[i] = rule;
      queries[i] = query_tokens(rule);
      keys[i] = count_to(rule.length);
      outputs[i] = count_to(static_cast<int64_t>(queries[i].size()));
      if (is_packed) {
        query_box[i] = rule.query_length;
        key_box[i] = rule.length;
        output_box[i] = static_cast<int64_t>(queries[i].size());
      }
      sample.seen[i].assign(static_cast<size_t>(rule.query_length),
                            std::vector<bool>(static_cast<size_t>(rule.length), false));
      for (int64_t query : queries[i]) {
        for (int64_t key : visible_keys(rule, query)) {
          sample.seen[i][static_cast<size_t>(query)][static_cast<size_t>(key)] = true;
        }
      }
    }
    const auto volume = [](const Position& box) { return box[0] * box[1] * box[2]; };
    if (!is_packed) {
      first_query = s * volume(query_box);
      first_key = s * volume(key_box);
      first_output = s * volume(output_box);
    }
    for_each_token(queries, query_box, [&](int64_t row, const Position& position) {
      sample.queries.push_back({first_query + row, position});
    });
    for_each_token(keys, key_box, [&](int64_t row, const Position& position) {
      sample.keys.push_back({first_key + row, position});
    });
    for_each_token(outputs, output_box, [&](int64_t row, const Position&) {
      sample.output_rows.push_back(first_output + row);
    });
    if (is_packed) {
      first_query += volume(query_box);
      first_key += volume(key_box);
      first_output += volume(output_box);
    }
    samples.push_back(sample);
  }
  return samples;
}

// The inputs as plain numbers, and the logits of one (query, head) over every key of its sample and
// then every additional token.
struct Dense {
  explicit Dense(const vecina_problem& given, const cli::Inputs& inputs)
      : problem(given),
        samples(samples_of(given, inputs)),
        query(values_of(inputs.query)),
        key(values_of(inputs.key)),
        value(values_of(inputs.value)),
        additional_key(values_of(inputs.additional_key)),
        additional_value(values_of(inputs.additional_value)),
        bias(values_of(inputs.bias)),
        head_scale(values_of(inputs.head_scale)) {
    if (problem.heads_kv == 0) problem.heads_kv = problem.heads;
    if (problem.head_dim_value == 0) problem.head_dim_value = problem.head_dim;
    scale = problem.has_scale ? problem.scale : 1.0 / std::sqrt(double{1} * problem.head_dim);
  }

  int64_t kv_head(int64_t head) const { return head / (problem.heads / problem.heads_kv); }
  int64_t additional_row(const Sample& sample, int64_t token) const {
    return sample.index * problem.additional_tokens + token;
  }
  // First element of (row, head) in a tensor of `heads` heads of `dim` numbers.
  static size_t at(int64_t row, int64_t heads, int64_t head, int64_t dim) {
    return index_of(row * heads + head, dim, 0);
  }
  size_t bias_at(const Sample& sample, const Token& q, const Token& k, int64_t head) const {
    int64_t index = head;
    for (int a = 0; a < problem.rank; ++a) {
      const auto i = static_cast<size_t>(a);
      const AxisRule& axis = sample.axes[i];
      index = index * (2 * axis.kernel_size - 1) + bias_index(axis, q.position[i], k.position[i]);
    }
    return static_cast<size_t>(index);
  }

  double logit(size_t q, const std::vector<double>& keys, size_t k, int64_t head) const {
    double sum = 0.0;
    for (size_t c = 0; c < static_cast<size_t>(problem.head_dim); ++c) {
      sum += query[q + c] * keys[k + c];
    }
    return scale * sum * (head_scale.empty() ? 1.0 : head_scale[static_cast<size_t>(head)]);
  }

  // -infinity where the query does not see the key.
  std::vector<double> logits(const Sample& sample, const Token& q, int64_t head) const {
    std::vector<double> row;
    const size_t query_at = at(q.row, problem.heads, head, problem.head_dim);
    for (const Token& k : sample.keys) {
      double sum = -kInfinity;
      if (sample.sees(q, k)) {
        sum = logit(query_at, key, at(k.row, problem.heads_kv, kv_head(head), problem.head_dim),
                    head);
        if (problem.has_bias) sum += bias[bias_at(sample, q, k, head)];
      }
      row.push_back(sum);
    }
    for (int64_t n = 0; n < problem.additional_tokens; ++n) {
      row.push_back(logit(
          query_at, additional_key,
          at(additional_row(sample, n), problem.heads_kv, kv_head(head), problem.head_dim), head));
    }
    return row;
  }

  vecina_problem problem;
  std::vector<Sample> samples;
  std::vector<double> query, key, value, additional_key, additional_value, bias, head_scale;
  double scale;
};

double log_sum_exp(const std::vector<double>& logits) {
  double most = -kInfinity, sum = 0.0;
  for (double logit : logits) most = std::max(most, logit);
  if (most == -kInfinity) return most;
  for (double logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

std::vector<double> softmax(const std::vector<double>& logits, double lse) {
  std::vector<double> weights;
  for (double logit : logits) weights.push_back(logit == -kInfinity ? 0.0 : std::exp(logit - lse));
  return weights;
}

// Output tokens of the whole tensor, those beyond a sample's lengths included.
int64_t output_rows_of(const vecina_problem& problem, const std::vector<Sample>& samples) {
  if (problem.lengths == VECINA_LENGTHS_PACKED) {
    int64_t rows = 0;
    for (const Sample& sample : samples) rows += static_cast<int64_t>(sample.output_rows.size());
    return rows;
  }
  int64_t rows = problem.batch;
  for (int a = 0; a < problem.rank; ++a) {
    rows *= static_cast<int64_t>(query_tokens(axis_rule(problem, a)).size());
  }
  return rows;
}

}  // namespace

OracleOutputs oracle_forward(const vecina_problem& given, const cli::Inputs& inputs) {
  const Dense dense(given, inputs);
  const vecina_problem& problem = dense.problem;
  const auto dim = static_cast<size_t>(problem.head_dim_value);
  const auto rows = static_cast<size_t>(output_rows_of(problem, dense.samples));
  const auto heads = static_cast<size_t>(problem.heads);
  OracleOutputs result = {std::vector<double>(rows * heads * dim, 0.0),
                          std::vector<double>(rows * heads, -kInfinity)};
  for (const Sample& sample : dense.samples) {
    for (size_t i = 0; i < sample.queries.size(); ++i) {
      for (int64_t head = 0; head < problem.heads; ++head) {
        const std::vector<double> logits = dense.logits(sample, sample.queries[i], head);
        const double lse = log_sum_exp(logits);
        const std::vector<double> weights = softmax(logits, lse);
        const int64_t row = sample.output_rows[i];
        result.lse[index_of(row, problem.heads, head)] = lse;
        double* output =
            &result.output[Dense::at(row, problem.heads, head, problem.head_dim_value)];
        for (size_t j = 0; j < weights.size(); ++j) {
          if (weights[j] == 0.0) continue;
          const bool is_window = j < sample.keys.size();
          const std::vector<double>& from = is_window ? dense.value : dense.additional_value;
          const int64_t from_row =
              is_window
                  ? sample.keys[j].row
                  : dense.additional_row(sample, static_cast<int64_t>(j - sample.keys.size()));
          const size_t at =
              Dense::at(from_row, problem.heads_kv, dense.kv_head(head), problem.head_dim_value);
          for (size_t c = 0; c < dim; ++c) output[c] += weights[j] * from[at + c];
        }
      }
    }
  }
  return result;
}

OracleGradients oracle_backward(const vecina_problem& given, const cli::Inputs& inputs) {
  const Dense dense(given, inputs);
  const vecina_problem& problem = dense.problem;
  const std::vector<double> grad_output = values_of(inputs.grad_output);
  const std::vector<double> grad_lse = values_of(inputs.grad_lse);
  const auto zeros = [](const std::vector<double>& like) {
    return std::vector<double>(like.size(), 0.0);
  };
  OracleGradients result = {zeros(dense.query),
                            zeros(dense.key),
                            zeros(dense.value),
                            zeros(dense.additional_key),
                            zeros(dense.additional_value),
                            zeros(dense.bias)};
  const auto dim = static_cast<size_t>(problem.head_dim);
  const auto dim_value = static_cast<size_t>(problem.head_dim_value);
  for (const Sample& sample : dense.samples) {
    for (size_t i = 0; i < sample.queries.size(); ++i) {
      for (int64_t head = 0; head < problem.heads; ++head) {
        const Token& q = sample.queries[i];
        const std::vector<double> logits = dense.logits(sample, q, head);
        const std::vector<double> weights = softmax(logits, log_sum_exp(logits));
        const size_t query_at = Dense::at(q.row, problem.heads, head, problem.head_dim);
        const double* grad = &grad_output[Dense::at(sample.output_rows[i], problem.heads, head,
                                                    problem.head_dim_value)];
        const double to_lse =
            grad_lse.empty() ? 0.0 : grad_lse[index_of(sample.output_rows[i], problem.heads, head)];
        // Rows of (key, value) j: of the window first, then of the additional tokens.
        const auto row_of = [&](size_t j) {
          return j < sample.keys.size()
                     ? sample.keys[j].row
                     : dense.additional_row(sample, static_cast<int64_t>(j - sample.keys.size()));
        };
        // d loss / d weight_j, and its mean: the derivative of the softmax
        // d weight_j / d logit_k = weight_j ((j == k) - weight_k), and d lse / d logit_k =
        // weight_k.
        std::vector<double> to_weight(weights.size(), 0.0);
        double mean = 0.0;
        for (size_t j = 0; j < weights.size(); ++j) {
          const bool is_window = j < sample.keys.size();
          const std::vector<double>& from = is_window ? dense.value : dense.additional_value;
          std::vector<double>& to = is_window ? result.value : result.additional_value;
          const size_t at =
              Dense::at(row_of(j), problem.heads_kv, dense.kv_head(head), problem.head_dim_value);
          for (size_t c = 0; c < dim_value; ++c) {
            to_weight[j] += grad[c] * from[at + c];
            to[at + c] += weights[j] * grad[c];
          }
          mean += weights[j] * to_weight[j];
        }
        for (size_t j = 0; j < weights.size(); ++j) {
          const double to_logit = weights[j] * (to_weight[j] - mean + to_lse);
          const bool is_window = j < sample.keys.size();
          const std::vector<double>& from = is_window ? dense.key : dense.additional_key;
          std::vector<double>& to = is_window ? result.key : result.additional_key;
          const size_t at =
              Dense::at(row_of(j), problem.heads_kv, dense.kv_head(head), problem.head_dim);
          for (size_t c = 0; c < dim; ++c) {
            result.query[query_at + c] += dense.scale * to_logit * from[at + c];
            to[at + c] += dense.scale * to_logit * dense.query[query_at + c];
          }
          if (is_window && problem.has_bias && sample.sees(q, sample.keys[j])) {
            result.bias[dense.bias_at(sample, q, sample.keys[j], head)] += to_logit;
          }
        }
      }
    }
  }
  return result;
}

OracleMerge oracle_merge(const std::vector<std::vector<double>>& outputs,
                         const std::vector<std::vector<double>>& lses,
                         const std::vector<double>& grad_output,
                         const std::vector<double>& grad_lse) {
  const size_t count = outputs.size(), rows = lses[0].size();
  const size_t dim = rows == 0 ? 0 : outputs[0].size() / rows;
  OracleMerge result;
  result.output.assign(rows * dim, 0.0);
  result.grad_outputs.assign(count, std::vector<double>(rows * dim, 0.0));
  result.grad_lses.assign(count, std::vector<double>(rows, 0.0));
  for (size_t row = 0; row < rows; ++row) {
    std::vector<double> branch_lses;
    for (size_t i = 0; i < count; ++i) branch_lses.push_back(lses[i][row]);
    const double lse = log_sum_exp(branch_lses);
    const std::vector<double> weights = softmax(branch_lses, lse);
    result.lse.push_back(lse);
    std::vector<double> to_weight(count, 0.0);
    double mean = 0.0;
    for (size_t i = 0; i < count; ++i) {
      if (weights[i] == 0.0) continue;
      for (size_t c = row * dim; c < (row + 1) * dim; ++c) {
        result.output[c] += weights[i] * outputs[i][c];
        if (grad_output.empty()) continue;
        result.grad_outputs[i][c] = weights[i] * grad_output[c];
        to_weight[i] += grad_output[c] * outputs[i][c];
      }
      mean += weights[i] * to_weight[i];
    }
    for (size_t i = 0; i < count; ++i) {
      const double to_lse = grad_lse.empty() ? 0.0 : grad_lse[row];
      result.grad_lses[i][row] = weights[i] * (to_weight[i] - mean + to_lse);
    }
  }
  return result;
}

}  // namespace vecina::tests
