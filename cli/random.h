// SPDX-License-Identifier: MIT
// The project's one random generator: results do not depend on the C++ library.
#ifndef VECINA_CLI_RANDOM_H_
#define VECINA_CLI_RANDOM_H_

#include <cstdint>

namespace vecina::cli {

// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    state_ += kStep;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // As if bits() had been called `count` times.
  void skip(uint64_t count) { state_ += count * kStep; }
  // Uniform in [low, high], both included.
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double probability) { return uniform() < probability; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Mean 0, variance 1: twelve uniform numbers added up, so no libm and no library differences.
  double normal() {
    double sum = -6.0;
    for (uint64_t i = 0; i < kBitsOfNormal; ++i) sum += uniform();
    return sum;
  }
  static constexpr uint64_t kBitsOfNormal = 12;  // calls of bits()

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  uint64_t state_;
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_RANDOM_H_
