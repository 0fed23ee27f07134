// SPDX-License-Identifier: MIT
// Streams rows of head_dim: memory is the limit, so the exponentials of one vector of rows are
// computed together and each output is read once.
#include "cpu/merge.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/tensor.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/pack-inl.h"
#include "hwy/contrib/math/math-inl.h"
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
    for (int d = 0; d < num_dims; ++d) {
      const auto k = static_cast<size_t>(d);
      at += row % sizes[k] * tensor.strides[dims[k]];
      row /= sizes[k];
    }
    return at;
  }
};

inline constexpr int64_t kRowsPerChunk = 256;

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_MERGE_ONCE_

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector of rows from `first` on, `rows` of them: weights for each branch, in `weights`.
template <class D>
void merge_weights(D d, const FoldedMerge& m, int64_t first, int64_t rows,
                   hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int i = 0; i < m.count; ++i) {
    const vecina_tensor& lse = m.lses[i];
    const T* data = reinterpret_cast<const T*>(address(lse));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      weights[i * lanes + lane] = data[m.offset(lse, first + std::min(lane, rows - 1))];
    }
  }
  auto max = hn::LoadU(d, weights);
  for (int i = 1; i < m.count; ++i) max = hn::Max(max, hn::LoadU(d, weights + i * lanes));
  // Branches of nothing but -infinity weigh 0, not NaN.
  const auto lowest = hn::Set(d, -hwy::HighestValue<T>());
  const auto base = hn::IfThenZeroElse(hn::Lt(max, lowest), max);
  auto sum = hn::Zero(d);
  for (int i = 0; i < m.count; ++i) {
    const auto x = hn::Sub(hn::LoadU(d, weights + i * lanes), base);
    const auto w = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));  // Exp makes 0 of a NaN
    hn::StoreU(w, d, weights + i * lanes);
    sum = hn::Add(sum, w);
  }
  const auto is_empty = hn::Eq(sum, hn::Zero(d));
  const auto inverse = hn::IfThenZeroElse(is_empty, hn::Div(hn::Set(d, T{1}), sum));
  for (int i = 0; i < m.count; ++i) {
    hn::StoreU(hn::Mul(hn::LoadU(d, weights + i * lanes), inverse), d, weights + i * lanes);
  }
  if (m.is_backward() || !given(*m.lse)) return;
  HWY_ALIGN T merged[hn::MaxLanes(d)];
  const auto infinite = hn::Set(d, -hwy::HighestValue<T>() * 2);
  const auto lse = hn::IfThenElse(hn::IsNaN(sum), sum, hn::Add(base, hn::Log(d, sum)));
  hn::Store(hn::IfThenElse(is_empty, infinite, lse), d, merged);
  T* data = reinterpret_cast<T*>(address(*m.lse));
  for (int64_t lane = 0; lane < rows; ++lane) {
    data[m.offset(*m.lse, first + lane)] = merged[lane];
  }
}

template <typename Pointer>
Pointer row_of(const FoldedMerge& m, const vecina_tensor& tensor, int64_t row) {
  return reinterpret_cast<Pointer>(address(tensor)) + m.offset(tensor, row);
}

// `count` elements, zeros after them.
template <class D, typename Element>
hn::Vec<D> load_some(D d, const Element* from, size_t count) {
  if (count == hn::Lanes(d)) return load(d, from);
  HWY_ALIGN Element part[hn::MaxLanes(d)] = {};
  std::copy_n(from, count, part);
  return load(d, part);
}

template <typename Element>
void merge_rows(const FoldedMerge& m, int64_t begin, int64_t end) {
  using T = typename ComputeType<Element>::type;
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  thread_local std::vector<T> weights;
  weights.resize(static_cast<size_t>(m.count) * static_cast<size_t>(lanes));
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t rows = std::min(lanes, end - first);
    merge_weights(d, m, first, rows, weights.data());
    for (int64_t lane = 0; lane < rows; ++lane) {
      auto* to = row_of<Element*>(m, *m.output, first + lane);
      for (int64_t at = 0; at < m.head_dim; at += lanes) {
        const auto count = static_cast<size_t>(std::min(lanes, m.head_dim - at));
        auto sum = hn::Zero(d);
        for (int i = 0; i < m.count; ++i) {
          const T w = weights[static_cast<size_t>(i * lanes + lane)];
          if (w == T{0}) continue;  // what weighs nothing may be anything, NaN included
          const auto* from = row_of<const Element*>(m, m.outputs[i], first + lane) + at;
          sum = hn::MulAdd(hn::Set(d, w), load_some(d, from, count), sum);
        }
        store_some(d, sum, count, to + at);
      }
    }
  }
}

// Of one row: dots[i] = grad_output . output_i; branches of weight 0 are not looked at.
template <typename Element, typename T>
void dot_branches(const FoldedMerge& m, int64_t row, const T* weights, int64_t weight_stride,
                  T* dots) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* gradient = row_of<const Element*>(m, *m.output, row);
  for (int i = 0; i < m.count; ++i) {
    dots[i] = 0;
    if (weights[i * weight_stride] == T{0}) continue;
    const auto* branch = row_of<const Element*>(m, m.outputs[i], row);
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
void write_gradients(const FoldedMerge& m, int64_t row, const T* weights, int64_t weight_stride,
                     const T* dots) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* gradient = row_of<const Element*>(m, *m.output, row);
  T delta = given(*m.lse) ? -*row_of<const T*>(m, *m.lse, row) : T{0};
  for (int i = 0; i < m.count; ++i) delta += weights[i * weight_stride] * dots[i];
  for (int i = 0; i < m.count; ++i) {
    const T weight = weights[i * weight_stride];
    if (m.grad_lses != nullptr && given(m.grad_lses[i])) {
      *row_of<T*>(m, m.grad_lses[i], row) = weight == T{0} ? T{0} : weight * (dots[i] - delta);
    }
    if (!given(m.grad_outputs[i])) continue;
    auto* to = row_of<Element*>(m, m.grad_outputs[i], row);
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
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  thread_local std::vector<T> weights, dots;
  weights.resize(static_cast<size_t>(m.count) * static_cast<size_t>(lanes));
  dots.resize(static_cast<size_t>(m.count));
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t rows = std::min(lanes, end - first);
    merge_weights(d, m, first, rows, weights.data());
    for (int64_t lane = 0; lane < rows; ++lane) {
      dot_branches<Element>(m, first + lane, weights.data() + lane, lanes, dots.data());
      write_gradients<Element>(m, first + lane, weights.data() + lane, lanes, dots.data());
    }
  }
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
  const auto is_one = [&](int outer, int inner) {
    return std::all_of(tensors.begin(), tensors.end(), [&](const vecina_tensor* tensor) {
      return !given(*tensor) ||
             tensor->strides[outer] == tensor->strides[inner] * tensor->shape[inner];
    });
  };
  for (int d = last - 1; d >= 0; --d) {
    const int64_t size = m.output->shape[d];
    m.rows *= size;
    if (m.num_dims > 0 && (size == 1 || is_one(d, d + 1))) {
      m.sizes[static_cast<size_t>(m.num_dims - 1)] *= size;
    } else {
      m.dims[static_cast<size_t>(m.num_dims)] = d;
      m.sizes[static_cast<size_t>(m.num_dims++)] = size;
    }
  }
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
  // Elements moved: a few bytes a nanosecond on one core.
  const int moved = m->is_backward() ? 2 * m->count + 1 : m->count + 1;
  const double elements = static_cast<double>(m->rows) * static_cast<double>(m->head_dim) * moved;
  threads->parallel_for(chunks, elements > 5e5, body, m);
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
