// SPDX-License-Identifier: MIT
// The steps of the split form, a unit at a time. A unit owns the tokens (or the head, or the
// additional token) that it writes and reads in one order, whatever thread it is on.
#include "cpu/split.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/split.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/split-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Token = std::array<int64_t, 3>;

// Longer lists of weights are brought together first.
constexpr int64_t kGatheredInPlace = 16;

inline Token token_at(int64_t index, int64_t middle, int64_t inner) {
  return {index / inner / middle, index / inner % middle, index % inner};
}
inline void step_on(Token* token, int64_t middle, int64_t inner, int64_t count = 1) {
  if (((*token)[2] += count) < inner) return;
  (*token)[2] = 0;
  if (++(*token)[1] < middle) return;
  (*token)[1] = 0;
  ++(*token)[0];
}
inline int64_t offset_of(const SplitTensor& tensor, const Token& token) {
  return token[0] * tensor.token[0] + token[1] * tensor.token[1] + token[2] * tensor.token[2];
}

// The steps of one unit. Working memory comes from the unit's scratch.
template <typename Element>
class Split {
 public:
  using T = typename ComputeType<Element>::type;

  explicit Split(const SplitUnit& unit)
      : plan_(unit.plan),
        step_(unit.step),
        index_(unit.unit),
        head_dim_(unit.head_dim),
        row_(unit.head_dim),
        slots_(plan_.window + plan_.additional_tokens),
        pitch_(slots_ * plan_.heads + static_cast<int64_t>(kMaxLanes)),
        offsets_(reinterpret_cast<int64_t*>(unit.scratch + unit.at.offsets)),
        places_(reinterpret_cast<int64_t*>(unit.scratch + unit.at.places)),
        bias_places_(reinterpret_cast<int64_t*>(unit.scratch + unit.at.bias_places)),
        additional_offsets_(reinterpret_cast<int64_t*>(unit.scratch + unit.at.additional_offsets)),
        raw_(reinterpret_cast<Element*>(unit.scratch + unit.at.raw)),
        factors_(reinterpret_cast<T*>(unit.scratch + unit.at.factors)),
        sum_(reinterpret_cast<T*>(unit.scratch + unit.at.row)),
        weights_(reinterpret_cast<T*>(unit.scratch + unit.at.weights)),
        bias_rows_(reinterpret_cast<T*>(unit.scratch + unit.at.bias_rows)),
        no_bias_(reinterpret_cast<T*>(unit.scratch + unit.at.no_bias)),
        table_(reinterpret_cast<double*>(unit.scratch + unit.at.table)) {
    for (int64_t n = 0; n < plan_.additional_tokens; ++n) {
      additional_offsets_[n] = n * step_.additional.token[2];
    }
    if (step_.kind == SplitKind::weights) {
      const auto lanes = static_cast<int64_t>(kMaxLanes);
      std::fill_n(no_bias_, plan_.additional_tokens + lanes, T{0});
      std::fill_n(bias_rows_, plan_.heads * slots_ + lanes, T{0});
    }
  }

  void run() {
    switch (step_.kind) {
      case SplitKind::weights:
        return for_each_query_run([&](int64_t batch, const Token& query, int64_t count) {
          write_weights(batch, query, count);
        });
      case SplitKind::rows:
        return for_each_query_run([&](int64_t batch, const Token& query, int64_t count) {
          write_rows(batch, query, count);
        });
      case SplitKind::keys:
        return write_keys();
      case SplitKind::additional:
        return write_additional();
      case SplitKind::bias:
        return write_bias();
    }
  }

 private:
  static Element* at(const SplitTensor& tensor, int64_t batch) {
    return reinterpret_cast<Element*>(tensor.data) + batch * tensor.batch;
  }
  const SplitAxis::Query& along(size_t a, const Token& query) const {
    return plan_.axes[a].queries[static_cast<size_t>(query[a])];
  }
  int group() const { return plan_.heads / plan_.heads_kv; }

  // The tokens of this unit of `count` in each batch, as runs of tokens along the innermost axis
  // that alike(token) says are alike from each on: visit(batch, first token, tokens).
  template <class Alike, class Visit>
  void for_each_run(int64_t count, int64_t middle, int64_t inner, const Alike& alike,
                    const Visit& visit) {
    const int64_t tokens = plan_.tokens_per_unit(head_dim_);
    const int64_t units = (count + tokens - 1) / tokens;
    const int64_t end = std::min(count, index_ % units * tokens + tokens);
    int64_t i = index_ % units * tokens;
    Token token = token_at(i, middle, inner);
    while (i < end) {
      const int64_t some = std::min<int64_t>(alike(token[2]), end - i);
      visit(index_ / units, token, some);
      step_on(&token, middle, inner, some);
      i += some;
    }
  }
  template <class Visit>
  void for_each_query_run(const Visit& visit) {
    const auto& queries = plan_.axes[2].queries;
    for_each_run(
        plan_.num_queries, plan_.axes[1].num_queries(), plan_.axes[2].num_queries(),
        [&](int64_t q) { return queries[static_cast<size_t>(q)].alike; }, visit);
  }

  // Takes up a query: its window's keys relative to the first one, and their slots.
  void look_from(const Token& query) {
    bool same = true;
    for (size_t a = 0; a < 3; ++a) {
      const SplitAxis::Query& axis = along(a, query);
      same = same && counts_[a] == axis.count;
      is_bias_read_ = is_bias_read_ && same && bias_begin_[a] == axis.bias;
      counts_[a] = axis.count;
      bias_begin_[a] = axis.bias;
    }
    first_key_ = 0;
    for (size_t a = 0; a < 3; ++a) first_key_ += along(a, query).begin * step_.keys.token[a];
    if (same) return;
    int64_t n = 0;
    const auto& axes = plan_.axes;
    for (int64_t x = 0; x < counts_[0]; ++x) {
      for (int64_t y = 0; y < counts_[1]; ++y) {
        for (int64_t z = 0; z < counts_[2]; ++z, ++n) {
          offsets_[n] = x * axes[0].dilation * step_.keys.token[0] +
                        y * axes[1].dilation * step_.keys.token[1] +
                        z * axes[2].dilation * step_.keys.token[2];
          places_[n] =
              ((along(0, query).empty + x) * axes[1].kernel_size + along(1, query).empty + y) *
                  axes[2].kernel_size +
              along(2, query).empty + z;
          bias_places_[n] =
              x * step_.bias.token[0] + y * step_.bias.token[1] + z * step_.bias.token[2];
        }
      }
    }
    num_keys_ = n;
  }
  bool is_whole() const { return num_keys_ == plan_.window; }
  // From one query's first key to the next one's of a run.
  int64_t key_step_of_query() const { return plan_.axes[2].output_stride * step_.keys.token[2]; }
  int64_t first_bias() const {
    return bias_begin_[0] * step_.bias.token[0] + bias_begin_[1] * step_.bias.token[1] +
           bias_begin_[2] * step_.bias.token[2];
  }

  // The biases of the window for all heads, laid as their weights are; kept while the next query's
  // stand as its own do.
  void read_bias() {
    if (is_bias_read_) return;
    is_bias_read_ = true;
    const T* bias = reinterpret_cast<const T*>(step_.bias.data) + first_bias();
    for (int head = 0; head < plan_.heads; ++head, bias += step_.bias.head) {
      for (int64_t n = 0; n < num_keys_; ++n) {
        bias_rows_[head * slots_ + n] = bias[bias_places_[n]];
      }
    }
  }

  void write_weights(int64_t batch, const Token& query, int64_t count) {
    look_from(query);
    if (step_.bias.data != nullptr) read_bias();
    const int64_t most = is_whole() ? tokens_at_once() : 1;
    Token first = query;
    for (int64_t t = 0; t < count; t += most, first[2] += most) {
      write_some_weights(batch, first, std::min(count - t, most), t);
    }
  }
  int64_t tokens_at_once() const {
    return std::max<int64_t>(1, std::min(kTokensAtOnce, kStagedWeights / pitch_));
  }

  // Of a few queries alike, `before` tokens behind the one that was looked from.
  void write_some_weights(int64_t batch, const Token& query, int64_t count, int64_t before) {
    const Element* rows = at(step_.rows, batch) + offset_of(step_.rows, query);
    const Element* keys = at(step_.keys, batch) + first_key_ + before * key_step_of_query();
    const T scale = static_cast<T>(step_.scale);
    for (int head = 0; head < plan_.heads; ++head) {
      const int head_kv = head / group();
      T* to = weights_ + head * slots_;
      T* near = is_whole() ? to : factors_;
      DotRun<T, Element> run = {count,
                                rows + head * step_.rows.head,
                                step_.rows.token[2],
                                keys + head_kv * step_.keys.head,
                                key_step_of_query(),
                                offsets_,
                                num_keys_,
                                scale,
                                bias_rows_ + head * slots_};
      dot_rows(row_, run, near, pitch_);
      if (!is_whole()) {  // one query
        std::fill_n(to, plan_.window, static_cast<T>(step_.empty));
        for (int64_t n = 0; n < num_keys_; ++n) to[places_[n]] = near[n];
      }
      if (plan_.additional_tokens == 0) continue;
      run.keys = at(step_.additional, batch) + head_kv * step_.additional.head;
      run.key_step = 0;
      run.offsets = additional_offsets_;
      run.num_keys = plan_.additional_tokens;
      run.bias = no_bias_;
      dot_rows(row_, run, to + plan_.window, pitch_);
    }
    Element* weights = at(step_.weights, batch) + offset_of(step_.weights, query);
    const int64_t step = step_.weights.token[2];
    if (step_.weights.head == slots_) {
      return convert_rows(weights_, pitch_, count, slots_ * plan_.heads, weights, step);
    }
    for (int head = 0; head < plan_.heads; ++head) {
      convert_rows(weights_ + head * slots_, pitch_, count, slots_,
                   weights + head * step_.weights.head, step);
    }
  }

  // `count` weights as the sums take them: converted, in `factors_` or where they are.
  const T* factors_of(const Element* weights, int64_t count) {
    if constexpr (std::is_same_v<T, Element>) {
      return weights;
    } else {
      const typename RowVectors<T>::D d;
      copy_row(d, weights, static_cast<size_t>(count), static_cast<size_t>(count), factors_);
      return factors_;
    }
  }
  const T* gathered(const Element* weights, const int64_t* places, int64_t count) {
    for (int64_t n = 0; n < count; ++n) raw_[n] = weights[places[n]];
    return factors_of(raw_, count);
  }

  // weights_of() of sum_run(): weights that follow each other, and those at places_, brought
  // together first or not.
  auto follow(int64_t count) {
    return [this, count](const Element* weights) { return factors_of(weights, count); };
  }
  auto copy(int64_t count) {
    return [this, count](const Element* weights) { return gathered(weights, places_, count); };
  }
  auto gather(int64_t count) {
    return [this, count](const Element* weights) {
      if constexpr (std::is_same_v<T, Element>) {
        return GatheredWeights<T>{weights, places_};
      } else {
        return gathered(weights, places_, count);
      }
    };
  }

  void write_rows(int64_t batch, const Token& query, int64_t count) {
    look_from(query);
    if (step_.rows_are_queries) {
      Token each = query;
      for (int64_t t = 0; t < count; ++t, ++each[2]) clear_skipped(batch, each);
    }
    // A few tokens of each head in turn, so that what heads share of lines stays near.
    for (int64_t t = 0; t < count; t += kTokensAtOnce) {
      Token first = query;
      first[2] += t;
      write_some_rows(batch, first, std::min(count - t, kTokensAtOnce), t);
    }
  }

  // As write_some_weights().
  void write_some_rows(int64_t batch, const Token& query, int64_t count, int64_t before) {
    const Element* keys = at(step_.keys, batch) + first_key_ + before * key_step_of_query();
    SumRun<T, Element> run = {};
    run.count = count;
    run.weight_step = step_.weights.token[2];
    run.scale = static_cast<T>(step_.scale);
    run.to_step = step_.rows.token[2];
    const auto more_of = follow(plan_.additional_tokens);
    for (int head = 0; head < plan_.heads; ++head) {
      const int head_kv = head / group();
      const Element* weights =
          at(step_.weights, batch) + offset_of(step_.weights, query) + head * step_.weights.head;
      run.list = {weights, keys + head_kv * step_.keys.head, key_step_of_query(), offsets_,
                  num_keys_};
      if (plan_.additional_tokens > 0) {
        run.more = {weights + plan_.window,
                    at(step_.additional, batch) + head_kv * step_.additional.head, 0,
                    additional_offsets_, plan_.additional_tokens};
      }
      run.to = at(step_.rows, batch) + offset_of(step_.rows, query) + head * step_.rows.head;
      if (is_whole()) {
        sum_rows(row_, run, follow(plan_.window), more_of);
      } else {
        sum_rows(row_, run, gather(num_keys_), more_of);
      }
    }
  }

  // The tokens from this query to the next one along each axis are no queries: zero.
  void clear_skipped(int64_t batch, const Token& query) {
    Token sizes;
    std::array<int64_t, 3> strides;
    for (size_t a = 0; a < 3; ++a) {
      const SplitAxis& axis = plan_.axes[a];
      sizes[a] = std::min(axis.output_stride, axis.query_extent - query[a] * axis.output_stride);
      strides[a] = step_.rows.token[a] / axis.output_stride;
    }
    if (sizes[0] * sizes[1] * sizes[2] == 1) return;
    Element* first = at(step_.rows, batch) + offset_of(step_.rows, query);
    for (int64_t x = 0; x < sizes[0]; ++x) {
      for (int64_t y = 0; y < sizes[1]; ++y) {
        for (int64_t z = 0; z < sizes[2]; ++z) {
          Element* token = first + x * strides[0] + y * strides[1] + z * strides[2];
          for (int head = 0; head < plan_.heads; ++head) {
            std::fill_n(token + head * step_.rows.head, head_dim_, Element{});
          }
        }
      }
    }
  }

  // Lists the queries that see a key: their rows in offsets_, their weights in places_.
  int64_t list_seers(const Token& key) {
    const auto& axes = plan_.axes;
    const auto seers = [&](size_t a) { return axes[a].keys[static_cast<size_t>(key[a])]; };
    const auto slot = [&](size_t a, int64_t q) -> int64_t { return axes[a].slot(key[a], q); };
    int64_t n = 0;
    const SplitAxis::Seers x = seers(0), y = seers(1), z = seers(2);
    for (int64_t i = 0, qx = x.first; i < x.count; ++i, qx += axes[0].query_step) {
      const int64_t slot_x = slot(0, qx);
      for (int64_t j = 0, qy = y.first; j < y.count; ++j, qy += axes[1].query_step) {
        const int64_t slot_y = slot_x * axes[1].kernel_size + slot(1, qy);
        for (int64_t k = 0, qz = z.first; k < z.count; ++k, qz += axes[2].query_step, ++n) {
          const Token query = {qx, qy, qz};
          offsets_[n] = offset_of(step_.rows, query);
          places_[n] = offset_of(step_.weights, query) + slot_y * axes[2].kernel_size + slot(2, qz);
        }
      }
    }
    return n;
  }

  // sum_ = over the query heads of a key head and the listed queries
  void add_queries(int64_t batch, int head_kv, int64_t count) {
    for (int g = 0; g < group(); ++g) {
      const int head = head_kv * group() + g;
      const T* factors =
          gathered(at(step_.weights, batch) + head * step_.weights.head, places_, count);
      add_rows(row_, factors, at(step_.rows, batch) + head * step_.rows.head, offsets_, count,
               sum_);
    }
  }

  void write_keys() {
    const auto& axes = plan_.axes;
    for_each_run(
        plan_.num_keys, axes[1].num_keys(), axes[2].num_keys(),
        [&](int64_t k) { return axes[2].keys[static_cast<size_t>(k)].alike; },
        [&](int64_t batch, const Token& key, int64_t count) {
          write_some_keys(batch, key, count);
        });
  }
  void write_some_keys(int64_t batch, const Token& key, int64_t count) {
    const int64_t seers = list_seers(key);
    for (int g = 1; g < group(); ++g) {
      for (int64_t n = 0; n < seers; ++n) {
        offsets_[g * seers + n] = offsets_[n] + g * step_.rows.head;
        places_[g * seers + n] = places_[n] + g * step_.weights.head;
      }
    }
    SumRun<T, Element> run = {};
    run.weight_step = step_.weights.token[2];
    run.scale = static_cast<T>(step_.scale);
    run.to_step = step_.keys.token[2];
    for (int64_t t = 0; t < count; t += kTokensAtOnce) {
      run.count = std::min(count - t, kTokensAtOnce);
      for (int head = 0; head < plan_.heads_kv; ++head) {
        run.list = {
            at(step_.weights, batch) + t * run.weight_step + head * group() * step_.weights.head,
            at(step_.rows, batch) + t * step_.rows.token[2] + head * group() * step_.rows.head,
            step_.rows.token[2], offsets_, group() * seers};
        run.to = at(step_.keys, batch) + offset_of(step_.keys, key) + t * run.to_step +
                 head * step_.keys.head;
        if (group() * seers > kGatheredInPlace) {
          sum_rows(row_, run, copy(group() * seers), follow(0));
        } else {
          sum_rows(row_, run, gather(group() * seers), follow(0));
        }
      }
    }
  }

  void write_additional() {
    const int64_t n = index_ % plan_.additional_tokens;
    const int64_t head_kv = index_ / plan_.additional_tokens % plan_.heads_kv;
    const int64_t batch = index_ / plan_.additional_tokens / plan_.heads_kv;
    const int64_t middle = plan_.axes[1].num_queries(), inner = plan_.axes[2].num_queries();
    clear_sum(row_, sum_);
    Token query = {};
    for (int64_t begin = 0; begin < plan_.num_queries; begin += kQueriesAtOnce) {
      const int64_t count = std::min(kQueriesAtOnce, plan_.num_queries - begin);
      for (int64_t i = 0; i < count; ++i, step_on(&query, middle, inner)) {
        offsets_[i] = offset_of(step_.rows, query);
        places_[i] = offset_of(step_.weights, query) + plan_.window + n;
      }
      add_queries(batch, static_cast<int>(head_kv), count);
    }
    write_sum(row_, sum_, static_cast<T>(step_.scale),
              at(step_.additional, batch) + n * step_.additional.token[2] +
                  head_kv * step_.additional.head);
  }

  // Of one head. Weights of queries that stand alike to their windows are added up before they go
  // to the table, where double keeps the digits of long sums.
  void write_bias() {
    std::fill_n(table_, plan_.bias_size, 0.0);
    const auto& axes = plan_.axes;
    const std::array<int64_t, 3> sizes = {1, 2 * axes[1].kernel_size - 1,
                                          2 * axes[2].kernel_size - 1};
    const std::array<int64_t, 3> steps = {sizes[1] * sizes[2], sizes[2], 1};
    const auto place = [&](int64_t x, int64_t y, int64_t z) {
      return x * steps[0] + y * steps[1] + z;
    };
    std::array<int64_t, 3> begin = {-1, -1, -1};
    int64_t num_added = 0;
    const auto flush = [&] {
      if (num_added == 0) return;
      int64_t n = 0;
      const int64_t first = place(begin[0], begin[1], begin[2]);
      for (int64_t x = 0; x < counts_[0]; ++x) {
        for (int64_t y = 0; y < counts_[1]; ++y) {
          for (int64_t z = 0; z < counts_[2]; ++z, ++n) {
            table_[first + place(x, y, z)] += static_cast<double>(weights_[n]);
          }
        }
      }
      num_added = 0;
    };
    const int64_t middle = axes[1].num_queries(), inner = axes[2].num_queries();
    for (int64_t batch = 0; batch < plan_.batch; ++batch) {
      Token query = {};
      for (int64_t i = 0, count; i < plan_.num_queries;
           i += count, step_on(&query, middle, inner, count)) {
        count = std::min<int64_t>(along(2, query).alike, kQueriesAtOnce);
        bool same = num_added > 0 && num_added + count <= kQueriesAtOnce;
        for (size_t a = 0; a < 3; ++a) {
          same = same && begin[a] == along(a, query).bias && counts_[a] == along(a, query).count;
        }
        if (!same) {
          flush();
          look_from(query);
          begin = bias_begin_;
          std::fill_n(weights_, num_keys_, T{0});
        }
        const Element* weights = at(step_.weights, batch) + offset_of(step_.weights, query) +
                                 index_ * step_.weights.head;
        if (is_whole()) {
          add_weights(weights, step_.weights.token[2], count, num_keys_, weights_);
        } else {
          for (int64_t t = 0; t < count; ++t, weights += step_.weights.token[2]) {
            const T* factors = gathered(weights, places_, num_keys_);
            for (int64_t n = 0; n < num_keys_; ++n) weights_[n] += factors[n];
          }
        }
        num_added += count;
      }
    }
    flush();
    T* bias = reinterpret_cast<T*>(step_.bias.data) + index_ * step_.bias.head;
    int64_t n = 0;
    for (int64_t x = 0; x < 2 * axes[0].kernel_size - 1; ++x) {
      for (int64_t y = 0; y < sizes[1]; ++y) {
        for (int64_t z = 0; z < sizes[2]; ++z, ++n) {
          bias[x * step_.bias.token[0] + y * step_.bias.token[1] + z * step_.bias.token[2]] =
              static_cast<T>(table_[n]);
        }
      }
    }
  }

  const SplitPlan& plan_;
  const SplitStep& step_;
  const int64_t index_;
  const int head_dim_;
  const RowVectors<T> row_;
  const int64_t slots_;
  const int64_t pitch_;  // from one query's weights to the next one's in weights_
  int64_t *const offsets_, *const places_, *const bias_places_, *const additional_offsets_;
  Element* const raw_;
  T *const factors_, *const sum_, *const weights_, *const bias_rows_, *const no_bias_;
  double* const table_;
  // Of the query that was looked from last.
  std::array<int64_t, 3> counts_ = {}, bias_begin_ = {};
  int64_t first_key_ = 0, num_keys_ = 0;
  bool is_bias_read_ = false;
};

void run_unit(const SplitUnit& unit) {
  switch (unit.plan.dtype) {
    case VECINA_F64:
      return Split<double>(unit).run();
    case VECINA_F16:
      return Split<float16>(unit).run();
    case VECINA_BF16:
      return Split<bfloat16>(unit).run();
    default:
      return Split<float>(unit).run();
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
namespace {
HWY_EXPORT(run_unit);
}  // namespace

void run_split_unit(const SplitUnit& unit) { HWY_DYNAMIC_DISPATCH(run_unit)(unit); }

}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
