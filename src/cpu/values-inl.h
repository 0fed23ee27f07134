// SPDX-License-Identifier: MIT
// The third step of a tile: sums of values times weights. Lanes run along head_dim_value.
// Part of each forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_VALUES_INL_H_
#undef VECINA_CPU_VALUES_INL_H_
#else
#define VECINA_CPU_VALUES_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the functions below read: the runs of one tile row. Q is the tag of a vector of weights, one
// for each of its queries; values may have vectors of more lanes.
template <class Q>
struct ValueArguments {
  using T = hn::TFromD<Q>;

  const KeyRun<T>* runs;
  int num_runs, num_window_runs;  // those of the window come first, additional tokens after them
  const T* weights;
  ptrdiff_t query_step;    // value rows between the keys of neighbouring queries
  const QueryView* views;  // one a query; nullptr: every query sees every key
};

// Where the sums of one row's queries come from and go to.
template <typename T, typename Element>
struct SumsTarget {
  T* kept;  // sums of keys that were flushed before, of query 0
  ptrdiff_t kept_pitch;
  bool has_kept, is_last;
  Element* output;  // of query 0
  ptrdiff_t output_stride;
  ptrdiff_t left;            // entries of a value row from the column on
  bool is_streamed = false;  // past the caches; output and its stride are whole vectors
};

// The weights of query i of a row are those of lane i / twins of vector i % twins.
template <class D>
constexpr ptrdiff_t weight_offset(int twins, int query) {
  constexpr ptrdiff_t kPitch =
      twin_pitch(static_cast<int>(hn::MaxLanes(D())), sizeof(hn::TFromD<D>));
  return query % twins * kPitch + query / twins;
}
// Before the weights of each query: the factor by which its sums so far shrink, and one over the
// sum of its weights.
template <class D>
constexpr ptrdiff_t shrink_offset() {
  return -kFactors * static_cast<ptrdiff_t>(hn::MaxLanes(D()));
}
template <class D>
constexpr ptrdiff_t inverse_offset() {
  return shrink_offset<D>() + static_cast<ptrdiff_t>(hn::MaxLanes(D()));
}

template <class Q>
HWY_INLINE QueryView seen_by(const ValueArguments<Q>& arguments, const KeyRun<hn::TFromD<Q>>& run,
                             int query) {
  if (arguments.views == nullptr || !run.is_window) return {0, run.count, run.count};
  const QueryView& view = arguments.views[query];
  const int visible = HWY_MAX(0, HWY_MIN(view.visible - run.first_key, run.count));
  return {0, visible, HWY_MAX(visible, HWY_MIN(view.wrapped - run.first_key, run.count))};
}

// How the queries of one call see their keys.
enum class Sharing {
  stairs,  // kQueries of them whose windows move by one key each
  level,   // kQueries of them with the same keys
  none,    // one query
};

// Of pairs of value rows: the bits of those that the queries see.
template <class D, bool kArePairs>
struct SeenBits {};
template <class D>
struct SeenBits<D, true> {
  hn::Vec<D> seen;
  // Row `row` of a run comes next.
  HWY_INLINE void begin_row(const KeyRun<hn::TFromD<D>>& run, int row) {
    const hn::RebindToUnsigned<D> bits;
    const bool has_first = row > 0 || !run.begins_within;
    const bool has_second = row + 1 < run.rows || !run.ends_within;
    seen =
        hn::BitCast(D(), hn::Set(bits, (has_first ? 0xffffu : 0) | (has_second ? 0xffff0000u : 0)));
  }
};

// Sums of values of kQueries queries, kVectors vectors each, kept in registers within one function:
// a function with several loops over them would spill.
// kArePairs: two rows of values at once, of bfloat16 side by side as their weights are.
template <int kQueries, int kVectors, class D, bool kArePairs>
struct ValueSums : SeenBits<D, kArePairs> {
  using T = hn::TFromD<D>;
  static constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  static constexpr int kSums = kQueries * kVectors;

  hn::Vec<D> sums[kSums];

  HWY_INLINE void clear() {
    unroll<kSums>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(D()); });
  }
  // One value row times the weights of queries [kFirst, kLast); those of each query begin kBack
  // elements before those of the one before it. kTwins 0: all have the same weight. Those from
  // kFresh on have no sums yet: a multiplication leaves the stores of the sums before their turn,
  // a multiply-add does not (Zen 4).
  template <class Q, size_t kFirst, size_t kLast, int kTwins, ptrdiff_t kBack = 0,
            size_t kFresh = kLast>
  HWY_INLINE void add(const T* value, const T* weights) {
    constexpr size_t kCount = kLast - kFirst;
    hn::Vec<D> w[kCount];
    unroll<kCount>([&](auto i) VECINA_INLINE {
      constexpr size_t q = kFirst + i;
      constexpr ptrdiff_t kOffset =
          kTwins == 0 ? 0 : weight_offset<Q>(kTwins == 0 ? 1 : kTwins, q) - ptrdiff_t{q} * kBack;
      w[i] = hn::Set(D(), weights[kOffset]);
    });
    unroll<kVectors>([&](auto k) VECINA_INLINE {
      auto v = hn::LoadU(D(), value + k * kLanes);
      if constexpr (kArePairs) v = hn::And(this->seen, v);
      if constexpr (kCount > 1) v = in_register(v);
      unroll<kCount>([&](auto i) VECINA_INLINE {
        constexpr size_t kSum = (kFirst + i) * kVectors + k;
        constexpr bool kIsFresh = kFirst + i >= kFresh;
        if constexpr (kArePairs) {
          static_assert(!kIsFresh);
          sums[kSum] = dot_pairs(D(), w[i], v, sums[kSum]);
        } else {
          sums[kSum] = kIsFresh ? hn::Mul(w[i], v) : hn::MulAdd(w[i], v, sums[kSum]);
        }
      });
    });
  }
};

#if HWY_TARGET == HWY_AVX3
// exponentiate() of the runs' logits, whose weights are rounded to bfloat16 and put side by side,
// those of each two rows of keys in the place of both; the runs tell of pairs then. The sum is of
// weights that are not rounded. The base is the largest logit: its weight, 1, stays what it is.
template <class D>
HWY_INLINE hn::Vec<D> exponentiate_pairs(D d, int num_runs, KeyRun<hn::TFromD<D>>* runs,
                                         hn::Vec<D> base, hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  const auto zero = hn::Zero(d);
  auto sum_low = zero, sum_high = zero;
  const auto weight = [&](const T* logit) VECINA_INLINE {
    return exp2_negative(d, hn::Sub(hn::Load(d, logit), base));
  };
  int slots = 0;
  for (int n = 0; n < num_runs; ++n) {
    KeyRun<T>& run = runs[n];
    const T* from = weights + run.slot * kLanes;
    T* to = weights + slots * kLanes;
    const ptrdiff_t row = run.count * kLanes;
    const T* const end = from + run.rows * row;
    run.slot = slots;
    if (run.begins_within) {
      for (ptrdiff_t j = 0; j < row; j += kLanes) {
        const auto high = weight(from + j);
        sum_high = hn::Add(sum_high, high);
        hn::Store(round_beside(d, zero, high), d, to + j);
      }
      from += row;
      to += row;
    }
    for (; from + row < end; from += 2 * row, to += row) {
      for (ptrdiff_t j = 0; j < row; j += kLanes) {
        const auto low = weight(from + j), high = weight(from + row + j);
        sum_low = hn::Add(sum_low, low);
        sum_high = hn::Add(sum_high, high);
        hn::Store(round_beside(d, low, high), d, to + j);
      }
    }
    run.ends_within = from < end;
    if (run.ends_within) {
      for (ptrdiff_t j = 0; j < row; j += kLanes) {
        const auto low = weight(from + j);
        sum_low = hn::Add(sum_low, low);
        hn::Store(round_beside(d, low, zero), d, to + j);
      }
    }
    run.rows = (run.rows + run.begins_within + 1) / 2;
    slots += run.rows * run.count;
  }
  return hn::Add(sum_low, sum_high);
}
#endif

// A row of keys that all queries see whole. kAreFresh: there are no sums yet.
template <int kTwins, bool kAreFresh, int kQueries, int kVectors, class D, class Q, bool kArePairs>
HWY_INLINE void add_whole_row(const KeyRun<hn::TFromD<D>>& run, const ValueArguments<Q>& arguments,
                              int query, ptrdiff_t column,
                              ValueSums<kQueries, kVectors, D, kArePairs>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(Q());
  const T* weights = arguments.weights + run.slot * kLanes + weight_offset<Q>(kTwins, query);
  const T* const end = weights + run.count * kLanes;
  const T* value = run.values + column;
  if constexpr (kAreFresh) {
    sums->template add<Q, 0, kQueries, kTwins, 0, 0>(value, weights);
    value += run.pitch;
    weights += kLanes;
  }
  for (; weights < end; weights += kLanes, value += run.pitch) {
    sums->template add<Q, 0, kQueries, kTwins>(value, weights);
  }
}

// Queries whose windows move by one key each: count + kQueries - 1 value rows, each loaded once.
// Runs of at least kQueries - 1 keys, seen by all. kAreFresh: there are no sums yet.
template <int kTwins, bool kAreFresh, int kQueries, int kVectors, class D, class Q, bool kArePairs>
HWY_INLINE void add_stairs(D, const ValueArguments<Q>& arguments, int query, ptrdiff_t column,
                           ValueSums<kQueries, kVectors, D, kArePairs>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(Q());
  constexpr size_t kRamp = kQueries - 1;
  const KeyRun<T>* run = arguments.runs;
  const KeyRun<T>* const end = run + arguments.num_window_runs;
  int row = 0;
  ptrdiff_t pitch = 0;
  const T *w = nullptr, *values = nullptr;
  const auto begin_run = [&]() VECINA_INLINE {
    row = 0;
    pitch = run->pitch;
    // Row j of the stairs is key j of the first query, key j - 1 of the second and so on.
    w = arguments.weights + run->slot * kLanes + weight_offset<Q>(kTwins, query);
    values = run->values + column + query * pitch;
  };
  const auto add_row = [&](auto is_first) VECINA_INLINE {
    if constexpr (kArePairs) sums->begin_row(*run, row);
    const T* value = values;
    unroll<kRamp>([&](auto j) VECINA_INLINE {
      sums->template add<Q, 0, j + 1, kTwins, kLanes, is_first ? j : j + 1>(value, w + j * kLanes);
      value += pitch;
    });
    w += kRamp * kLanes;
    int key = kRamp;
    if constexpr (is_first) {
      // The last query's first key.
      if (key < run->count) {
        sums->template add<Q, 0, kQueries, kTwins, kLanes, kRamp>(value, w);
        ++key;
        w += kLanes;
        value += pitch;
      } else {
        unroll<kVectors>([&](auto v)
                             VECINA_INLINE { sums->sums[kRamp * kVectors + v] = hn::Zero(D()); });
      }
    }
    for (; key < run->count; ++key, w += kLanes, value += pitch) {
      sums->template add<Q, 0, kQueries, kTwins, kLanes>(value, w);
    }
    unroll<kRamp>([&](auto j) VECINA_INLINE {
      sums->template add<Q, j + 1, kQueries, kTwins, kLanes>(value, w + j * kLanes);
      value += pitch;
    });
    values += run->row_step;
    ++row;
  };
  begin_run();
  // Additional tokens come first, since what begins the sums keeps none of them in registers.
  const KeyRun<T>* additional = end;
  const KeyRun<T>* const last = arguments.runs + arguments.num_runs;
  if constexpr (kAreFresh) {
    if (additional == last) {
      add_row(std::true_type());
    } else {
      add_whole_row<kTwins, /*kAreFresh=*/true>(*additional++, arguments, query, column, sums);
    }
  }
  for (; additional != last; ++additional) {
    add_whole_row<kTwins, /*kAreFresh=*/false>(*additional, arguments, query, column, sums);
  }
  while (true) {
    while (row < run->rows) add_row(std::false_type());
    if (++run == end) break;
    begin_run();
  }
}

// Queries that see the same keys, or each the first so many of them. kAreFresh: there are no sums
// yet.
template <int kTwins, bool kAreFresh, int kQueries, int kVectors, class D, class Q, bool kArePairs>
HWY_INLINE void add_level(D, const ValueArguments<Q>& arguments, int query, ptrdiff_t column,
                          ValueSums<kQueries, kVectors, D, kArePairs>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(Q());
  // Products of keys that all queries see may begin the sums.
  const bool begins = kAreFresh && arguments.views == nullptr && arguments.num_runs > 0;
  if (kAreFresh && !begins) sums->clear();
  for (int n = 0; n < arguments.num_runs; ++n) {
    const KeyRun<T>& run = arguments.runs[n];
    const ptrdiff_t pitch = run.pitch;
    const T* weights = arguments.weights + run.slot * kLanes + weight_offset<Q>(kTwins, query);
    const T* values = run.values + column;
    if (arguments.views == nullptr || !run.is_window) {  // no ends to find
      for (int row = 0; row < run.rows; ++row, values += run.row_step) {
        if constexpr (kArePairs) sums->begin_row(run, row);
        const T* value = values;
        const T* const end = weights + run.count * kLanes;
        if constexpr (kAreFresh) {
          if (begins && n == 0 && row == 0) {
            sums->template add<Q, 0, kQueries, kTwins, 0, 0>(value, weights);
            value += pitch;
            weights += kLanes;
          }
        }
        for (; weights < end; weights += kLanes) {
          sums->template add<Q, 0, kQueries, kTwins>(value, weights);
          value += pitch;
        }
      }
      continue;
    }
    int ends[kQueries], common = run.count;
    for (int q = 0; q < kQueries; ++q) {
      ends[q] = seen_by(arguments, run, query + q).visible;
      common = HWY_MIN(common, ends[q]);
    }
    for (int row = 0; row < run.rows; ++row) {
      if constexpr (kArePairs) sums->begin_row(run, row);
      const T* w = weights;
      const T* value = values;
      for (int j = 0; j < common; ++j, w += kLanes, value += pitch) {
        sums->template add<Q, 0, kQueries, kTwins>(value, w);
      }
      unroll<kQueries>([&](auto q) VECINA_INLINE {
        for (int j = common; j < ends[q]; ++j) {
          const ptrdiff_t further = j - common;
          sums->template add<Q, q, q + 1, kTwins>(value + further * pitch, w + further * kLanes);
        }
      });
      weights += run.count * kLanes;
      values += run.row_step;
    }
  }
}

// One query, whatever it sees. Four keys at once, each with sums of its own, which are added up in
// the end.
template <int kTwins, int kVectors, class D, class Q, bool kArePairs>
HWY_INLINE void add_single(D, const ValueArguments<Q>& arguments, int query, ptrdiff_t column,
                           ValueSums<1, kVectors, D, kArePairs>* total) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(Q());
  ValueSums<4, kVectors, D, kArePairs> sums;
  sums.clear();
  for (int n = 0; n < arguments.num_runs; ++n) {
    const KeyRun<T>& run = arguments.runs[n];
    const ptrdiff_t pitch = run.pitch;
    const T* w = arguments.weights + run.slot * kLanes + weight_offset<Q>(kTwins, query);
    const T* value =
        run.values + column + (run.is_shared ? 0 : query * arguments.query_step * pitch);
    const QueryView view = seen_by(arguments, run, query);
    for (int row = 0; row < run.rows; ++row) {
      if constexpr (kArePairs) sums.begin_row(run, row);
      for (int part = 0; part < 2; ++part) {
        int j = part == 0 ? 0 : view.wrapped;
        const int end = part == 0 ? view.visible : run.count;
        for (; j + 4 <= end; j += 4) {
          unroll<4>([&](auto k) VECINA_INLINE {
            const ptrdiff_t key = j + static_cast<ptrdiff_t>(size_t{k});
            sums.template add<Q, k, k + 1, 0>(value + key * pitch, w + key * kLanes);
          });
        }
        for (; j < end; ++j) sums.template add<Q, 0, 1, 0>(value + j * pitch, w + j * kLanes);
      }
      w += run.count * kLanes;
      value += run.row_step;
    }
  }
  unroll<kVectors>([&](auto v) VECINA_INLINE {
    total->sums[v] = hn::Add(
        total->sums[v], hn::Add(hn::Add(sums.sums[v], sums.sums[kVectors + v]),
                                hn::Add(sums.sums[2 * kVectors + v], sums.sums[3 * kVectors + v])));
  });
}

// Values of the queries [begin, end), kVectors vectors of them from `column` on. kWhole: all keys
// are there and all entries of the columns.
template <Sharing kSharing, int kTwins, int kQueries, int kVectors, bool kWhole, bool kArePairs,
          typename Element, class D, class Q>
HWY_NOINLINE void weigh_values(D d, const ValueArguments<Q>& arguments, int begin, int end,
                               ptrdiff_t column, const SumsTarget<hn::TFromD<D>, Element>& target) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  // Products of pairs are added to something in any case.
  constexpr bool kAreFresh = kWhole && kSharing != Sharing::none && !kArePairs;
  for (int query = begin; query < end; query += kQueries) {
    ValueSums<kQueries, kVectors, D, kArePairs> sums;
    T* HWY_RESTRICT kept = target.kept + query * target.kept_pitch;
    const T* factors = arguments.weights + weight_offset<Q>(kTwins, query);
    if (!kWhole && target.has_kept) {
      unroll<kQueries>([&](auto q) VECINA_INLINE {
        constexpr ptrdiff_t kOffset = shrink_offset<Q>() + weight_offset<Q>(kTwins, q);
        const auto factor = hn::Set(d, factors[kOffset]);
        unroll<kVectors>([&](auto v) VECINA_INLINE {
          sums.sums[q * kVectors + v] =
              hn::Mul(factor, hn::LoadU(d, kept + ptrdiff_t{q} * target.kept_pitch + v * kLanes));
        });
      });
    } else if (!kAreFresh) {
      sums.clear();
    }
    if constexpr (kSharing == Sharing::none) {
      add_single<kTwins>(d, arguments, query, column, &sums);
    } else if constexpr (kSharing == Sharing::level) {
      add_level<kTwins, kAreFresh>(d, arguments, query, column, &sums);
    } else {
      add_stairs<kTwins, kAreFresh>(d, arguments, query, column, &sums);
    }
    if (!kWhole && !target.is_last) {
      unroll<kQueries>([&](auto q) VECINA_INLINE {
        unroll<kVectors>([&](auto v) VECINA_INLINE {
          hn::StoreU(sums.sums[q * kVectors + v], d,
                     kept + ptrdiff_t{q} * target.kept_pitch + v * kLanes);
        });
      });
      continue;
    }
    Element* HWY_RESTRICT output = target.output + query * target.output_stride;
    const auto write = [&](const auto& write_vector) VECINA_INLINE {
      unroll<kQueries>([&](auto q) VECINA_INLINE {
        constexpr ptrdiff_t kOffset = inverse_offset<Q>() + weight_offset<Q>(kTwins, q);
        const auto factor = hn::Set(d, factors[kOffset]);
        unroll<kVectors>([&](auto v) VECINA_INLINE {
          write_vector(hn::Mul(factor, sums.sums[q * kVectors + v]), ptrdiff_t{v} * kLanes);
        });
        output += target.output_stride;
      });
    };
    if constexpr (!kWhole) {
      write([&](hn::Vec<D> v, ptrdiff_t at) VECINA_INLINE {
        if (at < target.left) {
          store_some(d, v, static_cast<size_t>(target.left - at), output + at);
        }
      });
    } else if constexpr (kStreams<T, Element>) {
      if (target.is_streamed) {
        write([&](hn::Vec<D> v, ptrdiff_t at) VECINA_INLINE { hn::Stream(v, d, output + at); });
      } else {
        write([&](hn::Vec<D> v, ptrdiff_t at) VECINA_INLINE { store(d, v, output + at); });
      }
    } else {
#if HWY_TARGET == HWY_AVX3
      if constexpr (kArePairs) {
        write([&](hn::Vec<D> v, ptrdiff_t at) VECINA_INLINE { store_rounded(d, v, output + at); });
        continue;
      }
#endif
      write([&](hn::Vec<D> v, ptrdiff_t at) VECINA_INLINE { store(d, v, output + at); });
    }
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_VALUES_INL_H_
