// SPDX-License-Identifier: MIT
// Loops of the forward pass with queries in lanes, with the plan, the packed keys and the scratch
// of a problem's first unit: packing, and the steps of a tile.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "benchmarks/cpu/inner.h"
#include "cpu/launch.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/cpu/inner_forward.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "benchmarks/cpu/inner_tile-inl.h"
#include "cpu/tile-inl.h"
#include "cpu/values-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::benchmarks::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace internal::cpu;                 // NOLINT: one namespace of every instruction set
using namespace internal::cpu::HWY_NAMESPACE;  // NOLINT

// A row of keys at a time, as where each row of a tile's windows is seen by other rows of queries.
template <class Tile>
InnerLoop logits(const std::string& line, int rows) {
  using Element = typename Tile::Element;
  using Tag = typename Tile::D;
  using T = typename Tile::T;
  constexpr int kLanes = Tile::kLanes;
  constexpr bool kArePairs = Tile::kMayHavePairs;
  const auto tile = std::make_shared<Tile>(line);
  const bool is_shifted = tile->is_shifted();
  const int twins = tile->twins(), vectors = rows * twins;
  const auto function = is_shifted ? &LogitsTable<KeyLayout::shifted, Tag, kArePairs>::run
                                   : &LogitsTable<KeyLayout::shared, Tag, kArePairs>::run;
  const auto run = [=] {
    LogitsArguments<T> arguments = {};
    arguments.head_dim = tile->plan.key_words;
    arguments.queries = tile->packed_queries(0, 0);
    arguments.query_pitch = tile->plan.queries_pitch;
    arguments.key_offsets = is_shifted ? tile->keys.key_offsets() : nullptr;
    arguments.key_pitch = tile->plan.key_pitch;
    arguments.key_step = is_shifted ? tile->keys.pitch() : 1;
    arguments.rows = 1;
    arguments.key_row = tile->packed_key_row();
    arguments.weight_row = ptrdiff_t{tile->count} * kLanes;
    if (kArePairs) arguments.scale = tile->scale();
    for (int y = 0; y < tile->rows_of_keys; ++y) {
      arguments.keys = tile->packed_keys(y) + tile->column();
      for (int v = 0; v < vectors; ++v) {
        arguments.weights[v] = tile->weights(v) + ptrdiff_t{y} * arguments.weight_row;
      }
      function(rows, twins, tile->count, arguments);
    }
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(tile->dtype()));
    for (int slot = 0; slot < tile->slots(); ++slot) {
      const int y = slot / tile->count, j = slot % tile->count;
      for (int i = 0; i < vectors * kLanes; ++i) {
        const int r = i / (twins * kLanes), t = i / kLanes % twins, lane = i % kLanes;
        const Element* query = tile->query(r, t) + lane * twins * tile->query_stride();
        const Element* key =
            tile->key_row(y) + tile->key_token(lane, t, j) * tile->plan.key.token[2];
        double sum = 0.0, magnitude = 0.0;
        for (int k = 0; k < tile->plan.head_dim; ++k) {
          const double product = tile->plan.scale * kLog2E * number(query[k]) * number(key[k]);
          sum += product;
          magnitude += std::abs(product);
        }
        comparison.add(tile->weights(r * twins + t)[slot * kLanes + lane], sum, magnitude);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * vectors * kLanes * tile->slots() * tile->plan.head_dim;
  return {run, mistake, work};
}

// The runs of a tile's row, all rows of its windows.
template <typename Element>
KeyRun<typename Tile<Element>::T> run_of(const Tile<Element>& tile) {
  KeyRun<typename Tile<Element>::T> run = {};
  run.pitch = tile.plan.value_pitch;
  const ptrdiff_t first = tile.is_shifted() ? tile.x - tile.plan.boxes[0].begin[2] : 0;
  run.values = tile.packed_values(0) + first * run.pitch;
  if constexpr (std::is_same_v<Element, typename Tile<Element>::T>) {
    if (tile.plan.values_in_place) {
      run.pitch = tile.plan.value.token[2];
      run.values = tile.value_row(0) + tile.key_token(0, 0, 0) * run.pitch;
    }
  }
  run.row_step = tile.keys.tokens() * run.pitch;
  run.rows = tile.rows_of_keys;
  run.count = tile.count;
  run.is_shared = !tile.is_shifted();
  run.is_window = true;
  return run;
}

// The softmax of one vector of queries, as ForwardTiles::flush() has it. Its results are the next
// run's logits, which changes nothing that takes time.
template <typename Element>
InnerLoop softmax_of_row(const std::string& line) {
  using T = typename Tile<Element>::T;
  using Tag = typename Tile<Element>::D;
  constexpr int kLanes = Tile<Element>::kLanes;
  const auto tile = std::make_shared<Tile<Element>>(line);
  const auto size = static_cast<size_t>(tile->slots());
  T* const weights = tile->weights(0);
  const std::vector<T> before(weights, weights + size * kLanes);
  const auto sums = std::make_shared<Memory>(kLanes * sizeof(T));
  const auto run = [=]() HWY_ATTR {
    const Tag d;
    SoftmaxState<Tag> state = empty_softmax(d);
    const auto old_max = state.max;
    state.max = largest_logit(d, size, weights, state.max);
    const auto shrink = softmax(d, old_max, &state, [&](hn::Vec<Tag> base) VECINA_INLINE {
      if constexpr (Tile<Element>::kMayHavePairs) {
        KeyRun<T> keys = run_of(*tile);
        return exponentiate_pairs(d, 1, &keys, base, weights);
      } else {
        return exponentiate(d, size, base, weights);
      }
    });
    hn::Store(shrink, d, weights + shrink_offset<Tag>());
    hn::Store(state.sum, d, sums->template as<T>());
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(tile->dtype()));
    for (int lane = 0; lane < kLanes; ++lane) {
      double max = -HUGE_VAL, sum = 0.0;
      for (size_t i = static_cast<size_t>(lane); i < before.size(); i += kLanes) {
        max = std::max(max, static_cast<double>(before[i]));
      }
      for (size_t i = static_cast<size_t>(lane); i < before.size(); i += kLanes) {
        sum += std::exp2(static_cast<double>(before[i]) - std::floor(max));
      }
      comparison.add(sums->template as<T>()[lane], sum, sum);
    }
    return comparison.mistake();
  };
  Work work;
  work.exponentials = static_cast<double>(size) * kLanes;
  return {run, mistake, work};
}

// The values of one tile row, with the instance of weigh_values() that
// ForwardTiles::weigh_queries() takes for whole windows.
template <typename Element, int kTwins, Sharing kSharing>
InnerLoop values(const std::string& line) {
  using T = typename Tile<Element>::T;
  using Tag = typename Tile<Element>::D;
  constexpr int kLanes = Tile<Element>::kLanes;
  constexpr bool kArePairs = Tile<Element>::kMayHavePairs;
  constexpr int kMany = kSharing == Sharing::none ? 1 : HWY_TARGET == HWY_AVX3 ? 8 : 4;
  const auto tile = std::make_shared<Tile<Element>>(line);
  const ForwardPlan& plan = tile->plan;
  if (tile->twins() != kTwins) throw std::invalid_argument("other twins: " + line);
  const int slots = tile->slots(), num_queries = tile->queries();
  // Weights of all twins, and one over their sums.
  const auto keys = std::make_shared<KeyRun<T>>(run_of(*tile));
  for (int t = 0; t < kTwins; ++t) {
    const Tag d;
    T* const weights = tile->weights(t);
    const auto size = static_cast<size_t>(slots);
    const auto base = hn::Floor(largest_logit(d, size, weights, empty_softmax(d).max));
    if constexpr (kArePairs) {
      hn::Store(exponentiate_pairs(d, 1, keys.get(), base, weights), d,
                weights + inverse_offset<Tag>());
    } else {
      hn::Store(exponentiate(d, size, base, weights), d, weights + inverse_offset<Tag>());
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      T& inverse = weights[inverse_offset<Tag>() + lane];
      inverse = 1 / inverse;
    }
  }
  // That query i gives to key j of row y.
  const auto weight = [=](int i, int y, int j) {
    const T* weights = tile->weights(i % kTwins) + i / kTwins;
    if constexpr (kArePairs) {
      return half_of(weights[(y / 2 * tile->count + j) * kLanes], y % 2);
    } else {
      return static_cast<double>(weights[(y * tile->count + j) * kLanes]);
    }
  };
  const ValueArguments<Tag> arguments = {keys.get(),        1,      1, tile->weights(0),
                                         tile->axis().step, nullptr};
  Element* const output = static_cast<Element*>(tile->pointers.output);
  const ptrdiff_t stride = plan.output.token[2];
  const bool sums_two = HWY_TARGET == HWY_AVX2 && kSharing == Sharing::stairs &&
                        plan.value_pitch % (4 * kLanes) == 0 && slots <= 96;
  const auto run = [=] {
    const auto weigh = [&](auto queries, auto vectors) {
      for (ptrdiff_t column = 0; column < tile->plan.value_pitch; column += vectors * kLanes) {
        const SumsTarget<T, Element> target = {nullptr,
                                               0,
                                               /*has_kept=*/false,
                                               /*is_last=*/true,
                                               output + column,
                                               stride,
                                               tile->plan.head_dim_value - column};
        weigh_values<kSharing, kTwins, queries, vectors, /*kWhole=*/true, kArePairs>(
            Tag(), arguments, 0, num_queries, column, target);
      }
      static_cast<void>(keys);
    };
    if constexpr (HWY_TARGET == HWY_AVX2 && kSharing == Sharing::stairs) {
      if (sums_two) {
        return weigh(std::integral_constant<int, 2>(), std::integral_constant<int, 4>());
      }
    }
    weigh(std::integral_constant<int, kMany>(), std::integral_constant<int, 2>());
  };
  const auto mistake = [=] {
    Comparison comparison(sizeof(Element) == 2 ? 0.004 : tolerance(tile->dtype()));
    for (int i = 0; i < num_queries; ++i) {
      for (int c = 0; c < tile->plan.head_dim_value; ++c) {
        double sum = 0.0, magnitude = 0.0;
        for (int y = 0; y < tile->rows_of_keys; ++y) {
          for (int j = 0; j < tile->count; ++j) {
            const int token = tile->key_token(i / kTwins, i % kTwins, j);
            const double product =
                weight(i, y, j) * number(tile->value_row(y)[token * tile->plan.value.token[2] + c]);
            sum += product;
            magnitude += std::abs(product);
          }
        }
        const double inverse = tile->weights(i % kTwins)[inverse_offset<Tag>() + i / kTwins];
        comparison.add(number(output[i * stride + c]), sum * inverse, magnitude * inverse);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.multiply_adds = 1.0 * num_queries * slots * plan.head_dim_value;
  return {run, mistake, work};
}

enum class Packed { keys, values, queries };

// The rows of keys or values of one window, or the rows of queries of a tile.
template <typename Element>
InnerLoop packing(const std::string& line, Packed what) {
  using T = typename Tile<Element>::T;
  constexpr int kLanes = Tile<Element>::kLanes;
  const auto tile = std::make_shared<Tile<Element>>(line);
  const ForwardPlan& plan = tile->plan;
  std::fill_n(tile->scratch, plan.scratch.sums, T{0});
  const int rows = what == Packed::queries ? kTileRows : tile->rows_of_keys;
  const auto run = [=] {
    for (int i = 0; i < rows; ++i) {
      if (what == Packed::keys) tile->pack_keys(i);
      if (what == Packed::values) tile->pack_values(i);
      if (what == Packed::queries) tile->pack_queries(i, 0);
    }
  };
  const bool are_pairs = what == Packed::values ? plan.has_value_pairs : plan.has_pairs;
  const int size = what == Packed::values ? plan.head_dim_value : plan.head_dim;
  // Entry i of a packed row of words, of which `word(n)` is the n-th: a number each or a pair.
  const auto entry = [=](const auto& word, int i) {
    return are_pairs ? half_of(word(i / 2), i % 2) : static_cast<double>(word(i));
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(tile->dtype()));
    const auto compare = [&](double actual, double expected) {
      comparison.add(actual, expected, std::abs(expected));
    };
    for (int i = 0; i < rows; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (what == Packed::queries) {
          const Element* query = tile->query(i, 0) + lane * tile->query_stride();
          const auto word = [&](int n) { return tile->packed_queries(i, 0)[n * kLanes + lane]; };
          const double scale = are_pairs ? 1.0 : tile->scale();
          for (int k = 0; k < size; ++k) {
            compare(entry(word, k), scale * number(query[k]));
          }
          continue;
        }
        for (int j = 0; j < tile->count; ++j) {
          const int token = tile->key_token(lane, 0, j);
          if (what == Packed::values) {
            const KeyRun<T> keys = run_of(*tile);
            const T* packed = keys.values + (are_pairs ? i / 2 : i) * keys.row_step +
                              (lane * tile->axis().step + j) * keys.pitch;
            const Element* value = tile->value_row(i) + token * tile->plan.value.token[2];
            for (int k = 0; k < size; ++k) {
              compare(are_pairs ? half_of(packed[k], i % 2) : static_cast<double>(packed[k]),
                      number(value[k]));
            }
          } else {
            const T* packed =
                tile->packed_keys(i) + tile->column() + tile->keys.key_offsets()[j] + lane;
            const Element* key = tile->key_row(i) + token * tile->plan.key.token[2];
            const auto word = [&](int n) { return packed[ptrdiff_t{n} * tile->keys.pitch()]; };
            for (int k = 0; k < size; ++k) compare(entry(word, k), number(key[k]));
          }
        }
      }
    }
    return comparison.mistake();
  };
  const int tokens = what == Packed::queries ? tile->queries() : tile->keys.tokens();
  Work work;
  work.bytes = 1.0 * rows * tokens * size *
               static_cast<double>(sizeof(Element) + (are_pairs ? sizeof(Element) : sizeof(T)));
  return {run, mistake, work};
}

// Problems whose plans have the tiles that are timed: of several rows in a plane; of twins in a
// line; of keys that all lanes share, with `rows` of queries or, if there is one, twins.
enum class Kind { plane, line, dense };
std::string problem(Kind kind, int keys, int head_dim, int rows = 1) {
  switch (kind) {
    case Kind::plane:
      return fmt::format("2d 32x32 kernel_size {} heads 4 head_dim {}", keys, head_dim);
    case Kind::line:
      return fmt::format("1d 4096 kernel_size {} heads 1 head_dim {}", keys, head_dim);
    default:
      return fmt::format("2d 16x16 kernel_size 16 heads {} heads_kv 1 head_dim {}", rows, head_dim);
  }
}

template <typename Element>
void add_logits(Kind kind, int rows, int keys, int head_dim, Cases* cases) {
  const bool has_twins = kind != Kind::plane && rows == 1;
  const auto name =
      fmt::format("logits/{}/{}:{}/keys:{}/head_dim:{}", kind == Kind::dense ? "shared" : "shifted",
                  has_twins ? "twins" : "rows", has_twins ? kMaxTwins : rows, keys, head_dim);
  cases->add<Element>(name, problem(kind, keys, head_dim, rows), [rows](const std::string& line) {
    return logits<Tile<Element>>(line, rows);
  });
}

template <typename Element, int kTwins, Sharing kSharing>
void add_values(Kind kind, int keys, int head_dim, Cases* cases) {
  const char* sharing = kSharing == Sharing::stairs  ? "stairs"
                        : kSharing == Sharing::level ? "level"
                                                     : "single";
  const auto name = fmt::format("values/{}{}/keys:{}/head_dim_value:{}", sharing,
                                kTwins > 1 ? fmt::format("/twins:{}", kTwins) : "", keys, head_dim);
  cases->add<Element>(name, problem(kind, keys, head_dim), &values<Element, kTwins, kSharing>);
}

template <typename Element>
void add_packing(int head_dim, Cases* cases) {
  for (const auto& [what, name] : {std::pair{Packed::keys, "keys"},
                                   {Packed::values, "values"},
                                   {Packed::queries, "queries"}}) {
    cases->add<Element>(
        fmt::format("pack/{}/head_dim:{}", name, head_dim), problem(Kind::plane, 7, head_dim),
        [what = what](const std::string& line) { return packing<Element>(line, what); });
  }
}

std::vector<InnerCase> make_cases() {
  Cases cases([](const internal::Problem& of) {
    return !takes_direct_form(of, forward_kernel(of.dtype()));
  });
  for (int rows = 1; rows <= kMaxLogitRows; ++rows) {
    add_logits<float>(Kind::plane, rows, 7, 32, &cases);
  }
  for (const int keys : {3, 5, 13}) add_logits<float>(Kind::plane, 3, keys, 32, &cases);
  for (const int head_dim : {64, 128}) add_logits<float>(Kind::plane, 3, 7, head_dim, &cases);
  add_logits<float>(Kind::line, 1, 64, 64, &cases);
  add_logits<float>(Kind::dense, 3, 256, 32, &cases);
  for (const int head_dim : {32, 64, 128}) {
    add_logits<float>(Kind::dense, 1, 256, head_dim, &cases);
  }
  if constexpr (kHasNarrowVectors) {
    for (const int rows : {1, 2, 3}) {
      cases.add<float>(fmt::format("logits/shifted/narrow/rows:{}/keys:7/head_dim:32", rows),
                       "2d 8x8 kernel_size 7 heads 4 head_dim 32", [rows](const std::string& line) {
                         return logits<Tile<float, NarrowTag<float>>>(line, rows);
                       });
    }
  }
  add_logits<double>(Kind::plane, 3, 7, 32, &cases);
  add_logits<double>(Kind::dense, 1, 256, 32, &cases);
  const std::string plane = problem(Kind::plane, 7, 32);
  cases.add<float>("softmax/keys:49", plane, &softmax_of_row<float>);
  cases.add<double>("softmax/keys:49", plane, &softmax_of_row<double>);
  for (const int head_dim : {32, 64, 128}) {
    add_values<float, 1, Sharing::stairs>(Kind::plane, 7, head_dim, &cases);
  }
  add_values<float, 1, Sharing::stairs>(Kind::plane, 13, 32, &cases);
  add_values<float, 1, Sharing::none>(Kind::plane, 7, 32, &cases);
  add_values<float, kMaxTwins, Sharing::stairs>(Kind::line, 64, 64, &cases);
  for (const int head_dim : {32, 64, 128}) {
    add_values<float, kMaxTwins, Sharing::level>(Kind::dense, 256, head_dim, &cases);
  }
  for (const int head_dim : {32, 64, 128}) add_packing<float>(head_dim, &cases);
  if constexpr (kHasPairs) {
    if (!forward_kernel(VECINA_BF16).has_fast_pair_products) return cases.take();
    for (const int head_dim : {32, 64, 128}) {
      add_logits<bfloat16>(Kind::plane, 3, 7, head_dim, &cases);
    }
    add_logits<bfloat16>(Kind::dense, 1, 256, 64, &cases);
    cases.add<bfloat16>("softmax/keys:49", plane, &softmax_of_row<bfloat16>);
    for (const int head_dim : {32, 64, 128}) {
      add_values<bfloat16, 1, Sharing::stairs>(Kind::plane, 7, head_dim, &cases);
    }
    for (const int head_dim : {32, 64, 128}) add_packing<bfloat16>(head_dim, &cases);
  }
  return cases.take();
}

}  // namespace
}  // namespace vecina::benchmarks::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::benchmarks {
HWY_EXPORT(make_cases);
std::vector<InnerCase> forward_cases() { return HWY_DYNAMIC_DISPATCH(make_cases)(); }
}  // namespace vecina::benchmarks
#endif  // HWY_ONCE
