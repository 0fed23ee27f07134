// SPDX-License-Identifier: MIT
// The problem line: one text form of a Problem for the command line, logs and bug reports.
//
//   2d 32x32 kernel_size 7x7 batch 2 heads 4 head_dim 32
//   attention 77x1024 causal heads 8 heads_kv 2 head_dim 64 additional 4 dtype f16
//
// Parsing what was printed gives the same problem. One number stands for all axes.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/problem.h"
#include "core/tensor.h"

namespace vecina::internal {
namespace {

constexpr std::string_view kWords =
    "kernel_size stride output_stride dilation causal batch heads heads_kv head_dim head_dim_value "
    "additional scale bias lengths allow dtype query_key_dtype";

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

enum class Reading { number, beyond_range, no_number };

template <typename Number>
Reading read_number(std::string_view text, Number* number) {
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, *number);
  if (text.empty() || stopped != end || error == std::errc::invalid_argument) {
    return Reading::no_number;
  }
  // Numbers that are too small are reported as those that are too large.
  if (error != std::errc() && text.find_first_of("eE") != std::string_view::npos &&
      text.substr(text.find_first_of("eE") + 1).starts_with('-')) {
    *number = 0;
    return Reading::number;
  }
  return error == std::errc() ? Reading::number : Reading::beyond_range;
}

template <typename Number>
Status beyond_range(std::string_view word, std::string_view text) {
  using Limits = std::numeric_limits<Number>;
  return invalid(fmt::format("'{}' takes numbers within {} and {}, not {}.", word, Limits::lowest(),
                             Limits::max(), text));
}

// Reads the words of one line into a vecina_problem; the first mistake stops it.
class LineParser {
 public:
  explicit LineParser(std::string_view line) {
    for (std::string_view word : split(line, " \t\r\n")) {
      if (!word.empty()) words_.push_back(word);
    }
  }

  Status parse(vecina_problem* problem) {
    VECINA_RETURN_IF_ERROR(parse_head(problem));
    while (next_ < words_.size()) {
      const std::string_view word = words_[next_++];
      if (word != "allow") {
        if (has_seen(word)) {
          return invalid(fmt::format("'{}' is given twice.", word));
        }
        seen_.push_back(word);
      }
      VECINA_RETURN_IF_ERROR(parse_word(word, problem));
    }
    return check_complete(*problem);
  }

 private:
  Status parse_head(vecina_problem* problem) {
    const std::string_view head = words_.empty() ? "" : words_[0];
    const bool is_attention = head == "attention";
    if (!is_attention && head != "1d" && head != "2d" && head != "3d") {
      return invalid(fmt::format(
          "a problem line begins with 1d, 2d, 3d or attention, not '{}'. Example: 2d 32x32 "
          "kernel_size 7 heads 4 head_dim 32",
          head));
    }
    const int rank = is_attention ? 1 : head[0] - '0';
    *problem = default_problem(rank);
    next_ = 1;
    if (!is_attention) return parse_axes("extents", rank, false, problem->extent);
    int64_t extents[3] = {};
    VECINA_RETURN_IF_ERROR(parse_axes("attention", 2, true, extents));
    if (extents[0] < 1) {  // in the struct, 0 stands for the keys' extent
      return invalid(fmt::format("'attention' needs 1 query or more, not {}.", extents[0]));
    }
    problem->kind = VECINA_ATTENTION;
    problem->query_extent[0] = extents[0];
    problem->extent[0] = extents[1];
    return {};
  }

  bool has_seen(std::string_view word) const {
    return std::find(seen_.begin(), seen_.end(), word) != seen_.end();
  }

  Status check_complete(const vecina_problem& problem) const {
    for (const char* word : {"kernel_size", "head_dim"}) {
      if (has_seen(word) || (word[0] == 'k' && problem.kind == VECINA_ATTENTION)) continue;
      return invalid(fmt::format("'{}' must be given.", word));
    }
    // In the struct, 0 stands for a field that was left out.
    for (const auto& [word, value] :
         {std::pair{"heads_kv", problem.heads_kv}, {"head_dim_value", problem.head_dim_value}}) {
      if (has_seen(word) && value == 0) {
        return invalid(fmt::format("'{}' needs 1 or more, not 0.", word));
      }
    }
    return {};
  }

  Status parse_word(std::string_view word, vecina_problem* problem) {
    const int rank = problem->rank;
    if (word == "kernel_size") return parse_axes(word, rank, true, problem->kernel_size);
    if (word == "stride") return parse_axes(word, rank, true, problem->stride);
    if (word == "output_stride") return parse_axes(word, rank, true, problem->output_stride);
    if (word == "dilation") return parse_axes(word, rank, true, problem->dilation);
    if (word == "causal") return parse_causal(problem);
    if (word == "batch") return parse_number(word, &problem->batch);
    if (word == "heads") return parse_number(word, &problem->heads);
    if (word == "heads_kv") return parse_number(word, &problem->heads_kv);
    if (word == "head_dim") return parse_number(word, &problem->head_dim);
    if (word == "head_dim_value") return parse_number(word, &problem->head_dim_value);
    if (word == "additional") return parse_number(word, &problem->additional_tokens);
    if (word == "scale") {
      problem->has_scale = 1;
      return parse_number(word, &problem->scale);
    }
    if (word == "bias") {
      problem->has_bias = 1;
      return {};
    }
    if (word == "lengths") return parse_lengths(problem);
    if (word == "allow") return parse_allow(problem);
    if (word == "dtype") return parse_dtype(problem);
    if (word == "query_key_dtype") return parse_query_key_dtype(problem);
    return invalid(
        fmt::format("'{}' is not a word of the problem line; known are {}.", word, kWords));
  }

  std::optional<std::string_view> take() {
    if (next_ == words_.size()) return std::nullopt;
    return words_[next_++];
  }

  template <typename Number>
  Status parse_number(std::string_view word, Number* number) {
    const std::optional<std::string_view> text = take();
    if (!text) return invalid(fmt::format("'{}' needs a number after it.", word));
    switch (read_number(*text, number)) {
      case Reading::number:
        return {};
      case Reading::beyond_range:
        return beyond_range<Number>(word, *text);
      default:
        return invalid(fmt::format("'{}' needs a number, not '{}'.", word, *text));
    }
  }

  // "7" for all axes (if allowed) or one number for each: "7x5".
  Status parse_axes(std::string_view word, int count, bool one_for_all, int64_t* values) {
    const std::optional<std::string_view> text = take();
    if (!text) return invalid(fmt::format("'{}' needs {} number(s) after it.", word, count));
    const std::vector<std::string_view> parts = split(*text, "x");
    const bool repeated = one_for_all && parts.size() == 1;
    if (!repeated && static_cast<int>(parts.size()) != count) {
      return invalid(
          fmt::format("'{}' needs {} number(s) joined by x, not '{}'.", word, count, *text));
    }
    for (int i = 0; i < count; ++i) {
      const std::string_view part = parts[repeated ? 0 : static_cast<size_t>(i)];
      const Reading reading = read_number(part, &values[i]);
      if (reading == Reading::beyond_range) return beyond_range<int64_t>(word, part);
      if (reading == Reading::no_number) {
        return invalid(
            fmt::format("'{}' needs {} number(s) joined by x, not '{}'.", word, count, *text));
      }
    }
    return {};
  }

  // "causal" alone: every axis; "causal 0x1": axis by axis.
  Status parse_causal(vecina_problem* problem) {
    int64_t values[3] = {1, 1, 1};
    const bool has_value =
        next_ < words_.size() && (words_[next_][0] == '0' || words_[next_][0] == '1');
    if (has_value) VECINA_RETURN_IF_ERROR(parse_axes("causal", problem->rank, true, values));
    for (int a = 0; a < problem->rank; ++a) {
      if (values[a] != 0 && values[a] != 1) {
        return invalid(fmt::format("'causal' takes 0 or 1 for each axis, not {}.", values[a]));
      }
      problem->is_causal[a] = static_cast<int32_t>(values[a]);
    }
    return {};
  }

  Status parse_lengths(vecina_problem* problem) {
    const std::string_view text = take().value_or("");
    constexpr std::string_view kPacked = "packed:";
    if (text == "padded") {
      problem->lengths = VECINA_LENGTHS_PADDED;
      return {};
    }
    if (text.substr(0, kPacked.size()) == kPacked &&
        read_number(text.substr(kPacked.size()), &problem->samples) == Reading::number) {
      problem->lengths = VECINA_LENGTHS_PACKED;
      return {};
    }
    return invalid(fmt::format("'lengths' is padded or packed:SAMPLES, not '{}'.", text));
  }

  Status parse_allow(vecina_problem* problem) {
    const std::string_view text = take().value_or("");
    if (text == "tf32") {
      problem->flags |= VECINA_ALLOW_TF32;
    } else if (text == "nondeterministic") {
      problem->flags |= VECINA_NONDETERMINISTIC_BACKWARD;
    } else {
      return invalid(fmt::format("'allow' is tf32 or nondeterministic, not '{}'.", text));
    }
    return {};
  }

  Status parse_dtype(vecina_problem* problem) {
    const std::string_view text = take().value_or("");
    for (const DtypeRow& row : kDtypes) {
      if (row.is_float && text == row.name) {
        problem->dtype = row.dtype;
        return {};
      }
    }
    return invalid(fmt::format("'dtype' is f32, f64, f16 or bf16, not '{}'.", text));
  }

  Status parse_query_key_dtype(vecina_problem* problem) {
    const std::string_view text = take().value_or("");
    if (text != dtype_name(VECINA_E4M3)) {
      return invalid(fmt::format("'query_key_dtype' is e4m3, not '{}'.", text));
    }
    problem->query_key_dtype = VECINA_E4M3;
    return {};
  }

  std::vector<std::string_view> words_, seen_;
  size_t next_ = 0;
};

}  // namespace

Status Problem::parse(std::string_view line, Problem* problem) {
  vecina_problem given;
  VECINA_RETURN_IF_ERROR(LineParser(line).parse(&given));
  return make(given, problem);
}

std::string Problem::line() const {
  const auto axes = [&](auto field) {
    std::string text;
    for (int a = 0; a < rank_; ++a) {
      text +=
          fmt::format("{}{}", a > 0 ? "x" : "", static_cast<int64_t>(std::invoke(field, axis(a))));
    }
    return text;
  };
  const auto any = [&](auto field, int64_t usual) {
    for (int a = 0; a < rank_; ++a) {
      if (static_cast<int64_t>(std::invoke(field, axis(a))) != usual) return true;
    }
    return false;
  };
  std::string text;
  if (is_attention()) {
    text = fmt::format("attention {}x{}", axis(0).query_extent, axis(0).extent);
  } else {
    text =
        fmt::format("{}d {} kernel_size {}", rank_, axes(&Axis::extent), axes(&Axis::kernel_size));
  }
  if (any(&Axis::stride, 1)) text += fmt::format(" stride {}", axes(&Axis::stride));
  if (any(&Axis::output_stride, 1))
    text += fmt::format(" output_stride {}", axes(&Axis::output_stride));
  if (any(&Axis::dilation, 1)) text += fmt::format(" dilation {}", axes(&Axis::dilation));
  if (any(&Axis::is_causal, 0)) {
    text += " causal";
    if (any(&Axis::is_causal, 1)) text += fmt::format(" {}", axes(&Axis::is_causal));
  }
  if (batch_ != 1) text += fmt::format(" batch {}", batch_);
  text += fmt::format(" heads {}", heads_);
  if (heads_kv_ != heads_) text += fmt::format(" heads_kv {}", heads_kv_);
  text += fmt::format(" head_dim {}", head_dim_);
  if (head_dim_value_ != head_dim_) text += fmt::format(" head_dim_value {}", head_dim_value_);
  if (additional_tokens_ != 0) text += fmt::format(" additional {}", additional_tokens_);
  if (has_scale_) text += fmt::format(" scale {}", scale_);
  if (has_bias_) text += " bias";
  if (lengths_ == VECINA_LENGTHS_PADDED) text += " lengths padded";
  if (lengths_ == VECINA_LENGTHS_PACKED) text += fmt::format(" lengths packed:{}", samples_);
  if (flags_ & VECINA_ALLOW_TF32) text += " allow tf32";
  if (flags_ & VECINA_NONDETERMINISTIC_BACKWARD) text += " allow nondeterministic";
  if (dtype_ != VECINA_F32) text += fmt::format(" dtype {}", dtype_name(dtype_));
  if (has_e4m3()) text += fmt::format(" query_key_dtype {}", dtype_name(VECINA_E4M3));
  return text;
}

}  // namespace vecina::internal
