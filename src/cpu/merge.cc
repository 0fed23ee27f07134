// SPDX-License-Identifier: MIT
// Streams rows of head_dim: memory is the limit, so the exponentials of a block of rows are
// computed together, where its rows lie is found once, and each output is read once.
#include "cpu/merge.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "core/tensor.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

#ifndef VECINA_CPU_MERGE_ONCE_
#define VECINA_CPU_MERGE_ONCE_
namespace vecina::internal::cpu {

// A merge or its backward with its dimensions folded: those that are one in memory for every tensor
// become one.
struct FoldedMerge {
  static constexpr int kMaxDims = 5;
  int count = 0, num_dims = 0;
  int64_t head_dim = 0, rows = 1;
  std::array<int64_t, kMaxDims> sizes;  // innermost first
  std::array<int, kMaxDims> dims;       // the tensors' dimension whose stride a folded one has
  const vecina_tensor *outputs, *lses;
  const vecina_tensor *output, *lse;  // merged; of backward, their gradients
  const vecina_tensor *grad_outputs = nullptr, *grad_lses = nullptr;  // of backward

  bool is_backward() const { return grad_outputs != nullptr; }
  int64_t offset(const vecina_tensor& tensor, int64_t row) const {
    int64_t at = 0;
    size_t d = 0;
    for (; d + 1 < static_cast<size_t>(num_dims); ++d) {
      at += row % sizes[d] * tensor.strides[dims[d]];
      row /= sizes[d];
    }
    at += row * tensor.strides[dims[d]];  // of one dimension, as most often: no division
    return at;
  }
};

inline constexpr int64_t kRowsPerChunk = 256;

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_MERGE_ONCE_

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of one tensor at equal distances: those of a block.
template <typename U>
struct Rows {
  U* first = nullptr;  // nullptr: the tensor is not given
  ptrdiff_t stride = 0;
  U* row(int64_t i) const { return first + i * stride; }
};
template <typename U>
Rows<U> rows_from(const FoldedMerge& m, const vecina_tensor& tensor, int64_t first) {
  if (!given(tensor)) return {};
  return {reinterpret_cast<U*>(address(tensor)) + m.offset(tensor, first),
          tensor.strides[m.dims[0]]};
}

// Calls f(first, rows) for blocks of at most `most` rows that do not cross the innermost folded
// dimension: where they lie is found once for all of them.
template <typename F>
void for_blocks(const FoldedMerge& m, int64_t begin, int64_t end, int64_t most, const F& f) {
  int64_t left = m.sizes[0] - begin % m.sizes[0];
  for (int64_t first = begin, rows; first < end; first += rows) {
    rows = std::min({most, end - first, left});
    f(first, rows);
    left -= rows;
    if (left == 0) left = m.sizes[0];
  }
}

constexpr double kLog2E = 1.44269504088896340736;
template <typename T>
constexpr T kLeastExponent = sizeof(T) == 4 ? -126 : -1022;  // of normal numbers

// Rows whose weights are computed together: each step is done for all vectors of rows before the
// next, because one alone waits for its own results.
template <class D>
constexpr int64_t block_rows(D d) {
  return 8 * static_cast<int64_t>(hn::MaxLanes(d));
}

// The weights of branch i for `rows` rows from `first` on: weights[i * block_rows] and following.
// True if all of them weigh something.
template <class D>
bool merge_weights(D d, const FoldedMerge& m, int64_t first, int64_t rows,
                   hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(D()));
  constexpr int64_t kRows = block_rows(D());
  const int64_t filled = (rows + kLanes - 1) / kLanes * kLanes;  // with the last row
  for (int i = 0; i < m.count; ++i) {
    const auto lse = rows_from<const T>(m, m.lses[i], first);
    T* to = weights + i * kRows;
    if (lse.stride == 1) {
      std::copy_n(lse.first, rows, to);
    } else {
      for (int64_t row = 0; row < rows; ++row) to[row] = *lse.row(row);
    }
    std::fill(to + rows, to + filled, to[rows - 1]);
  }
  HWY_ALIGN T bases[kRows], sums[kRows];
  for (int64_t at = 0; at < filled; at += kLanes) {
    auto max = hn::LoadU(d, weights + at);
    for (int i = 1; i < m.count; ++i) max = hn::Max(max, hn::LoadU(d, weights + i * kRows + at));
    // Branches of nothing but -infinity weigh 0, not NaN.
    const auto lowest = hn::Set(d, -hwy::HighestValue<T>());
    hn::Store(hn::IfThenZeroElse(hn::Lt(max, lowest), max), d, bases + at);
    hn::Store(hn::Zero(d), d, sums + at);
  }
  for (int i = 0; i < m.count; ++i) {
    for (int64_t at = 0; at < filled; at += kLanes) {
      T* to = weights + i * kRows + at;
      const auto x = hn::Sub(hn::LoadU(d, to), hn::Load(d, bases + at));
      // What is no normal number weighs nothing, as -infinity does; NaN is not less.
      const auto exponent = hn::Mul(x, hn::Set(d, static_cast<T>(kLog2E)));
      const auto w = hn::IfThenZeroElse(hn::Lt(exponent, hn::Set(d, kLeastExponent<T>)),
                                        exp2_negative(d, exponent));
      hn::StoreU(w, d, to);
      hn::Store(hn::Add(hn::Load(d, sums + at), w), d, sums + at);
    }
  }
  auto least = hn::Set(d, T{1});
  for (int64_t at = 0; at < filled; at += kLanes) {
    const auto sum = hn::Load(d, sums + at);
    const auto is_empty = hn::Eq(sum, hn::Zero(d));
    const auto inverse = hn::IfThenZeroElse(is_empty, hn::Div(hn::Set(d, T{1}), sum));
    for (int i = 0; i < m.count; ++i) {
      T* to = weights + i * kRows + at;
      const auto weight = hn::Mul(hn::LoadU(d, to), inverse);
      least = hn::Min(weight, least);  // of which NaN is no part
      hn::StoreU(weight, d, to);
    }
  }
  const bool all_weigh = hn::AllTrue(d, hn::Gt(least, hn::Zero(d)));
  if (m.is_backward() || !given(*m.lse)) return all_weigh;
  for (int64_t at = 0; at < filled; at += kLanes) {
    const auto sum = hn::Load(d, sums + at);
    const auto infinite = hn::Set(d, -hwy::HighestValue<T>() * 2);
    const auto lse =
        hn::IfThenElse(hn::IsNaN(sum), sum, hn::Add(hn::Load(d, bases + at), log_normal(d, sum)));
    hn::Store(hn::IfThenElse(hn::Eq(sum, hn::Zero(d)), infinite, lse), d, bases + at);
  }
  const auto to = rows_from<T>(m, *m.lse, first);
  if (to.stride == 1) {
    std::copy_n(bases, rows, to.first);
  } else {
    for (int64_t row = 0; row < rows; ++row) *to.row(row) = bases[row];
  }
  return all_weigh;
}

// `count` elements, zeros after them.
template <class D, typename Element>
hn::Vec<D> load_some(D d, const Element* from, size_t count) {
  if (count == hn::Lanes(d)) return load(d, from);
  HWY_ALIGN Element part[hn::MaxLanes(d)] = {};
  std::copy_n(from, count, part);
  return load(d, part);
}

// `rows` rows from `first` on of `count` branches, at least two, kVectors vectors of them from `at`
// on, the last one with `left` elements. Branch i weighs weights[i * block_rows + row]; kAllWeigh:
// something.
template <bool kAllWeigh, size_t kVectors, class D, typename Element>
HWY_INLINE void merge_columns(D d, const Rows<const Element>* branches, int count, int64_t first,
                              int64_t rows, int64_t at, size_t left,
                              const hn::TFromD<D>* HWY_RESTRICT weights, Rows<Element> output) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  const Element* from0 = branches[0].row(first) + at;
  const Element* from1 = branches[1].row(first) + at;
  Element* to = output.row(first) + at;
  for (int64_t row = first; row < first + rows; ++row) {
    hn::Vec<D> sums[kVectors];
    unroll<kVectors>([&](auto v) VECINA_INLINE { sums[v] = hn::Zero(d); });
    const auto add = [&](int i, const Element* from) VECINA_INLINE {
      const T weight = weights[i * block_rows(D()) + row];
      // What weighs nothing may be anything, NaN included.
      if (!kAllWeigh && weight == T{0}) return;
      const auto w = hn::Set(d, weight);
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        const auto part = kVectors == 1 ? load_some(d, from, left) : load(d, from + v * kLanes);
        sums[v] = hn::MulAdd(w, part, sums[v]);
      });
    };
    add(0, from0);
    add(1, from1);
    for (int i = 2; i < count; ++i) add(i, branches[i].row(row) + at);
    unroll<kVectors>([&](auto v) VECINA_INLINE {
      store_some(d, sums[v], kVectors == 1 ? left : hn::Lanes(d), to + v * kLanes);
    });
    from0 += branches[0].stride;
    from1 += branches[1].stride;
    to += output.stride;
  }
}

template <typename Element>
void merge_rows(const FoldedMerge& m, int64_t begin, int64_t end) {
  using T = typename ComputeType<Element>::type;
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  thread_local std::vector<T> kept_weights;
  thread_local std::vector<Rows<const Element>> kept_branches;
  kept_weights.resize(static_cast<size_t>(m.count * block_rows(d)));
  kept_branches.resize(static_cast<size_t>(m.count));
  T* const weights = kept_weights.data();
  Rows<const Element>* const branches = kept_branches.data();
  for_blocks(m, begin, end, block_rows(d), [&](int64_t first, int64_t rows) HWY_ATTR {
    const bool all_weigh = merge_weights(d, m, first, rows, weights);
    for (int i = 0; i < m.count; ++i) {
      branches[i] = rows_from<const Element>(m, m.outputs[i], first);
    }
    const auto output = rows_from<Element>(m, *m.output, first);
    // Several rows at once: what pieces they have is asked once. Long rows of several pieces are
    // read from end to end, which memory is faster at.
    constexpr int64_t kTogether = 192;
    const bool is_one_piece = m.head_dim <= 8 * lanes && m.head_dim % lanes == 0 &&
                              std::has_single_bit(static_cast<uint64_t>(m.head_dim / lanes));
    const int64_t most =
        is_one_piece ? rows : kTogether / std::clamp<int64_t>(m.head_dim, 1, kTogether);
    for (int64_t row = 0, together; row < rows; row += together) {
      together = std::min(most, rows - row);
      int64_t at = 0;
      const auto columns = [&](auto vectors, size_t left) VECINA_INLINE {
        constexpr size_t kVectors = decltype(vectors)::value;
        if (HWY_LIKELY(all_weigh)) {
          merge_columns<true, kVectors>(d, branches, m.count, row, together, at, left, weights,
                                        output);
        } else {
          merge_columns<false, kVectors>(d, branches, m.count, row, together, at, left, weights,
                                         output);
        }
        at += static_cast<int64_t>(kVectors) * lanes;
      };
      while (at + 8 * lanes <= m.head_dim) columns(std::integral_constant<size_t, 8>(), 0);
      while (at + 4 * lanes <= m.head_dim) columns(std::integral_constant<size_t, 4>(), 0);
      while (at + 2 * lanes <= m.head_dim) columns(std::integral_constant<size_t, 2>(), 0);
      while (at < m.head_dim) {
        columns(std::integral_constant<size_t, 1>(),
                static_cast<size_t>(std::min(lanes, m.head_dim - at)));
      }
    }
  });
}

// One branch of a block, of backward.
template <typename Element, typename T>
struct Branch {
  Rows<const Element> output;
  Rows<Element> grad_output;
  Rows<T> grad_lse;
};

// Of one row: dots[i] = grad_output . output_i; branches of weight 0 are not looked at.
template <typename Element, typename T>
void dot_branches(const FoldedMerge& m, const Branch<Element, T>* branches, int64_t row,
                  const Element* gradient, const T* weights, T* dots) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int i = 0; i < m.count; ++i) {
    dots[i] = 0;
    if (weights[i * block_rows(d)] == T{0}) continue;
    const Element* branch = branches[i].output.row(row);
    auto sum = hn::Zero(d);
    for (int64_t at = 0; at < m.head_dim; at += lanes) {
      const auto count = static_cast<size_t>(std::min(lanes, m.head_dim - at));
      sum = hn::MulAdd(load_some(d, gradient + at, count), load_some(d, branch + at, count), sum);
    }
    dots[i] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

// grad_outputs_i = weight_i * grad_output
// grad_lses_i    = weight_i * (dots_i - delta),   delta = sum_i weight_i * dots_i - grad_lse
template <typename Element, typename T>
void write_gradients(const FoldedMerge& m, const Branch<Element, T>* branches, int64_t row,
                     const Element* gradient, T grad_lse, const T* weights, const T* dots) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  T delta = -grad_lse;
  for (int i = 0; i < m.count; ++i) delta += weights[i * block_rows(d)] * dots[i];
  for (int i = 0; i < m.count; ++i) {
    const Branch<Element, T>& branch = branches[i];
    const T weight = weights[i * block_rows(d)];
    if (branch.grad_lse.first != nullptr) {
      *branch.grad_lse.row(row) = weight == T{0} ? T{0} : weight * (dots[i] - delta);
    }
    if (branch.grad_output.first == nullptr) continue;
    Element* to = branch.grad_output.row(row);
    for (int64_t at = 0; at < m.head_dim; at += lanes) {
      const auto count = static_cast<size_t>(std::min(lanes, m.head_dim - at));
      const auto part = weight == T{0}
                            ? hn::Zero(d)
                            : hn::Mul(hn::Set(d, weight), load_some(d, gradient + at, count));
      store_some(d, part, count, to + at);
    }
  }
}

template <typename Element>
void merge_rows_backward(const FoldedMerge& m, int64_t begin, int64_t end) {
  using T = typename ComputeType<Element>::type;
  const hn::ScalableTag<T> d;
  thread_local std::vector<T> weights, dots;
  thread_local std::vector<Branch<Element, T>> branches;
  weights.resize(static_cast<size_t>(m.count * block_rows(d)));
  dots.resize(static_cast<size_t>(m.count));
  branches.resize(static_cast<size_t>(m.count));
  for_blocks(m, begin, end, block_rows(d), [&](int64_t first, int64_t rows) HWY_ATTR {
    merge_weights(d, m, first, rows, weights.data());
    for (int i = 0; i < m.count; ++i) {
      branches[static_cast<size_t>(i)] = {
          rows_from<const Element>(m, m.outputs[i], first),
          rows_from<Element>(m, m.grad_outputs[i], first),
          m.grad_lses == nullptr ? Rows<T>() : rows_from<T>(m, m.grad_lses[i], first)};
    }
    const auto gradient = rows_from<const Element>(m, *m.output, first);
    const auto grad_lse = rows_from<const T>(m, *m.lse, first);
    for (int64_t row = 0; row < rows; ++row) {
      dot_branches(m, branches.data(), row, gradient.row(row), weights.data() + row, dots.data());
      write_gradients(m, branches.data(), row, gradient.row(row),
                      grad_lse.first == nullptr ? T{0} : *grad_lse.row(row), weights.data() + row,
                      dots.data());
    }
  });
}

template <typename Element>
void merge_or_backward(const FoldedMerge& m, int64_t begin, int64_t end) {
  m.is_backward() ? merge_rows_backward<Element>(m, begin, end)
                  : merge_rows<Element>(m, begin, end);
}

void merge_chunk(const FoldedMerge& m, int64_t begin, int64_t end) {
  switch (m.output->dtype) {
    case VECINA_F64:
      return merge_or_backward<double>(m, begin, end);
    case VECINA_F16:
      return merge_or_backward<float16>(m, begin, end);
    case VECINA_BF16:
      return merge_or_backward<bfloat16>(m, begin, end);
    default:
      return merge_or_backward<float>(m, begin, end);
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
namespace {

HWY_EXPORT(merge_chunk);

// Folds the dimensions but the last; the tensors stand in m.
void fold(FoldedMerge* merge) {
  FoldedMerge& m = *merge;
  thread_local std::vector<const vecina_tensor*>
      tensors;  // kept, so that a warm call allocates nothing
  tensors.assign({m.output, m.lse});
  for (int i = 0; i < m.count; ++i) {
    tensors.insert(tensors.end(), {&m.outputs[i], &m.lses[i]});
    if (m.grad_outputs != nullptr) tensors.push_back(&m.grad_outputs[i]);
    if (m.grad_lses != nullptr) tensors.push_back(&m.grad_lses[i]);
  }
  const int last = m.output->ndim - 1;
  m.head_dim = m.output->shape[last];
  const auto is_one = [&](int outer, int inner, int64_t size) {
    return std::all_of(tensors.begin(), tensors.end(), [&](const vecina_tensor* tensor) {
      return !given(*tensor) || tensor->strides[outer] == tensor->strides[inner] * size;
    });
  };
  const auto add_dimension = [&](int d, int64_t size) {
    m.dims[static_cast<size_t>(m.num_dims)] = d;
    m.sizes[static_cast<size_t>(m.num_dims++)] = size;
  };
  for (int d = last - 1; d >= 0; --d) {
    const int64_t size = m.output->shape[d];
    m.rows *= size;
    if (size == 1) continue;  // its stride means nothing
    const auto folded = static_cast<size_t>(m.num_dims - 1);
    if (m.num_dims > 0 && is_one(d, m.dims[folded], m.sizes[folded])) {
      m.sizes[folded] *= size;
    } else {
      add_dimension(d, size);
    }
  }
  if (m.num_dims == 0) add_dimension(0, 1);
}

void run(FoldedMerge* m, ThreadPool* threads) {
  fold(m);
  if (m->rows == 0) return;
  const int64_t chunks = (m->rows + kRowsPerChunk - 1) / kRowsPerChunk;
  const auto body = [](int64_t chunk, void* user) {
    const auto& folded = *static_cast<const FoldedMerge*>(user);
    HWY_DYNAMIC_DISPATCH(merge_chunk)
    (folded, chunk * kRowsPerChunk, std::min(folded.rows, (chunk + 1) * kRowsPerChunk));
  };
  constexpr double kElementsOfMicrosecond = 5e3;  // moved by one core
  const int moved = m->is_backward() ? 2 * m->count + 1 : m->count + 1;
  const double elements = static_cast<double>(m->rows) * static_cast<double>(m->head_dim) * moved;
  ThreadPool::Call(threads, elements / kElementsOfMicrosecond).parallel_for(chunks, body, m);
}

}  // namespace

void merge(const MergeArgs& args, ThreadPool* threads) {
  FoldedMerge m;
  m.count = args.count;
  m.outputs = args.outputs;
  m.lses = args.lses;
  m.output = args.output;
  m.lse = args.lse;
  run(&m, threads);
}

void merge_backward(const MergeBackwardArgs& args, ThreadPool* threads) {
  FoldedMerge m;
  m.count = args.count;
  m.outputs = args.outputs;
  m.lses = args.lses;
  m.output = args.grad_output;
  m.lse = args.grad_lse;
  m.grad_outputs = args.grad_outputs;
  m.grad_lses = args.grad_lses;
  run(&m, threads);
}

}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
