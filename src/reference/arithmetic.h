// SPDX-License-Identifier: MIT
// How the definition computes: in which type it sums, and what it rounds on the way.
//
// The loops of this folder are written once, over one of these. `Exact` is the oracle: everything
// in double. `Plain` is what a straightforward program in the problem's own dtype would get, with
// e4m3 one whose sums of products are the tensor cores'; a fast backend may not be much worse than
// it.
#ifndef VECINA_REFERENCE_ARITHMETIC_H_
#define VECINA_REFERENCE_ARITHMETIC_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "vecina/vecina.hpp"

namespace vecina::internal::reference {

// The float on the way from a double to a 16-bit type. Rounding to odd (Boldo and Melquiond, "When
// double rounding is odd") keeps the second rounding right: whatever is lost leaves the last bit
// set.
inline float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || !std::isfinite(nearest)) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;  // towards zero
  return std::bit_cast<float>(bits | 1u);
}

template <class To, class From>
To convert(From from) {
  if constexpr (std::is_floating_point_v<From> && std::is_floating_point_v<To>) {
    return static_cast<To>(from);
  } else if constexpr (std::is_same_v<From, double>) {
    return static_cast<To>(round_to_odd(from));
  } else {
    return static_cast<To>(static_cast<float>(from));
  }
}

template <class ElementType, class QueryKeyType, class RealType, class RoundedType>
struct Arithmetic {
  using Element = ElementType;    // of value, output and their gradients
  using QueryKey = QueryKeyType;  // of query and key; forward alone has it differ from Element
  using Real = RealType;          // of every sum
  // Of lse, its gradient, the bias and its gradient.
  using Lse = std::conditional_t<std::is_same_v<Element, double>, double, float>;

  // A logit, a probability or one of their gradients, as it would be kept between two steps.
  static Real rounded(Real value) { return convert<Real>(convert<RoundedType>(value)); }

  template <class Other>
  using WithQueryKey = Arithmetic<Element, Other, Real, RoundedType>;
};

template <class Element>
using Exact = Arithmetic<Element, Element, double, double>;
template <class Element>
using Plain =
    Arithmetic<Element, Element, std::conditional_t<std::is_same_v<Element, double>, double, float>,
               Element>;

template <class Real, class Element>
void load(const Element* from, std::vector<Real>& row) {
  for (size_t d = 0; d < row.size(); ++d) row[d] = convert<Real>(from[d]);
}

template <class Real, class Element>
void store(const std::vector<Real>& row, Element* to) {
  for (size_t d = 0; d < row.size(); ++d) to[d] = convert<Element>(row[d]);
}

// sum_d row[d] * other[d] as tensor cores have it that take e4m3: of 32 products and the sum before
// them 14 bits are added, counted from the largest, and 14 bits of their sum stay (DeepSeek-V3
// Technical Report, arXiv:2412.19437, 3.5.2, of Hopper's).
inline float dot_of_tensor_cores(const std::vector<float>& row, const float8_e4m3* other) {
  constexpr size_t kStep = 32;
  // The last of 14 bits of a number: products of e4m3 and their sums are far from subnormal.
  const auto unit_of = [](float value) {
    return std::bit_cast<float>((std::bit_cast<uint32_t>(value) & 0x7f800000u) - (13u << 23));
  };
  float sum = 0.0f;
  std::array<float, kStep> products;
  for (size_t begin = 0; begin < row.size(); begin += kStep) {
    const size_t count = std::min(kStep, row.size() - begin);
    float largest = std::abs(sum);
    for (size_t i = 0; i < count; ++i) {
      products[i] = row[begin + i] * convert<float>(other[begin + i]);
      if (std::isnan(products[i])) return products[i];
      largest = std::max(largest, std::abs(products[i]));
    }
    if (largest == 0.0f) continue;
    const float unit = unit_of(largest), units = 1.0f / unit;
    auto total = static_cast<int32_t>(sum * units);  // what is below is cut
    for (size_t i = 0; i < count; ++i) total += static_cast<int32_t>(products[i] * units);
    const float whole = static_cast<float>(total);
    const float last = total == 0 ? 1.0f : std::max(unit_of(whole), 1.0f);
    sum = static_cast<float>(static_cast<int32_t>(whole / last)) * last * unit;
  }
  return sum;
}

// sum_d row[d] * other[d]
template <class Real, class Element>
Real dot(const std::vector<Real>& row, const Element* other) {
  if constexpr (std::is_same_v<Real, float> && std::is_same_v<Element, float8_e4m3>) {
    return dot_of_tensor_cores(row, other);
  }
  Real sum = 0;
  for (size_t d = 0; d < row.size(); ++d) sum += row[d] * convert<Real>(other[d]);
  return sum;
}

// sum[d] += factor * row[d], d < size
template <class Real, class Element>
void add_scaled(Real factor, const Element* row, size_t size, Real* sum) {
  for (size_t d = 0; d < size; ++d) sum[d] += factor * convert<Real>(row[d]);
}

// Replaces logits by their softmax; returns the natural log of the sum of their exponentials (lse).
// Where all are -infinity, or there are none, nothing is seen: zeros, and an lse of -infinity.
template <class A>
typename A::Real softmax(std::vector<typename A::Real>& logits) {
  using Real = typename A::Real;
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  Real maximum = -kInfinity;
  for (Real logit : logits) maximum = std::max(maximum, logit);
  // Subtracting the maximum keeps exp within range; -infinity minus itself would be NaN.
  const Real shift = maximum == -kInfinity ? Real{0} : maximum;

  Real sum = 0;
  for (Real& logit : logits) {
    logit = std::exp(logit - shift);
    sum += logit;
  }
  if (sum != 0) {  // also if NaN: one NaN logit makes the row NaN
    for (Real& probability : logits) probability = A::rounded(probability / sum);
  }
  return shift + std::log(sum);
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_ARITHMETIC_H_
