// SPDX-License-Identifier: MIT
// Numbers that everything else stands on: float16 and bfloat16 exhaustively against the formats as
// written down in IEEE 754, the random generator's fixed values, tensors of the tests themselves.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "cli/random.h"
#include "vecina/vecina.hpp"

namespace vecina::tests {
namespace {

// A binary format with `exponent_bits` and `mantissa_bits`, in doubles.
struct Format {
  int exponent_bits, mantissa_bits;

  double decode(uint16_t bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) {
      return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    }
    const double fraction = std::ldexp(mantissa, -mantissa_bits);
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
    return sign * std::ldexp(1.0 + fraction, exponent - bias);
  }

  // By bisection over the non-negative numbers in order; infinity stands one step above the
  // largest.
  uint16_t round_to_nearest_even(double value) const {
    const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
    const double magnitude = std::abs(value);
    const auto infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits);
    const auto at = [&](uint16_t bits) {
      if (bits < infinity) return decode(bits);
      return 2 * decode(static_cast<uint16_t>(infinity - (1 << mantissa_bits)));
    };
    if (magnitude >= at(infinity)) return sign | infinity;
    uint16_t low = 0, high = infinity;  // at(low) <= magnitude < at(high)
    while (high - low > 1) {
      const auto middle = static_cast<uint16_t>((low + high) / 2);
      (at(middle) <= magnitude ? low : high) = middle;
    }
    const double below = magnitude - at(low), above = at(high) - magnitude;
    const bool goes_up = above < below || (above == below && low % 2 == 1);
    return sign | (goes_up ? high : low);
  }
};
constexpr Format kFloat16 = {5, 10}, kBfloat16 = {8, 7};

template <typename Half>
void expect_all_values(const Format& format) {
  for (uint32_t word = 0; word < 0x10000; ++word) {
    Half half;
    half.bits = static_cast<uint16_t>(word);
    const double expected = format.decode(half.bits);
    const float actual = static_cast<float>(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << std::hex << word;
      ASSERT_TRUE(std::isnan(static_cast<float>(Half(actual)))) << std::hex << word;
      continue;
    }
    ASSERT_EQ(static_cast<double>(actual), expected) << std::hex << word;
    ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << std::hex << word;
    ASSERT_EQ(Half(actual).bits, word) << "round trip";
  }
}
TEST(Float16, EveryValue) { expect_all_values<float16>(kFloat16); }
TEST(Bfloat16, EveryValue) { expect_all_values<bfloat16>(kBfloat16); }

template <typename Half>
void expect_rounding(const Format& format) {
  const auto check = [&](float value) {
    ASSERT_EQ(Half(value).bits, format.round_to_nearest_even(static_cast<double>(value)))
        << std::hexfloat << value;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  // Around every value and every midpoint between neighbours.
  const auto limit =
      static_cast<uint16_t>(((1 << format.exponent_bits) - 1) << format.mantissa_bits);
  for (uint16_t bits = 0; bits < limit; ++bits) {
    const double here = format.decode(bits);
    const double next = bits + 1 < limit ? format.decode(static_cast<uint16_t>(bits + 1))
                                         : here + (here - format.decode(bits - 1));
    for (double centre : {here, (here + next) / 2}) {
      const auto value = static_cast<float>(centre);  // exact or, beyond float's range, infinite
      for (float near : {value, std::nextafterf(value, infinity), std::nextafterf(value, 0.0f)}) {
        check(near);
        check(-near);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
  cli::Random random(5);
  for (int i = 0; i < 300000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random.bits()));
    if (!std::isnan(value)) check(value);
    if (testing::Test::HasFatalFailure()) return;
  }
  for (float value :
       {0.0f, infinity, std::numeric_limits<float>::max(), std::numeric_limits<float>::min(),
        std::numeric_limits<float>::denorm_min()}) {
    check(value);
    check(-value);
  }
}
TEST(Float16, RoundsToNearestEven) { expect_rounding<float16>(kFloat16); }
TEST(Bfloat16, RoundsToNearestEven) { expect_rounding<bfloat16>(kBfloat16); }

TEST(Float16, KnownValues) {
  EXPECT_EQ(float16(1.0f).bits, 0x3c00);
  EXPECT_EQ(float16(-2.0f).bits, 0xc000);
  EXPECT_EQ(float16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(float16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(float16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(float16(0x1p-24f).bits, 0x0001);
  EXPECT_EQ(float16(0x1p-25f).bits, 0x0000);
  EXPECT_EQ(float16(0x1.8p-25f).bits, 0x0001);
  EXPECT_EQ(float16(-0.0f).bits, 0x8000);
  EXPECT_EQ(bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bfloat16(3.140625f).bits, 0x4049);
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  static_assert(sizeof(float16) == 2 && sizeof(bfloat16) == 2);
}

// SplitMix64 as published; the same on every platform, for ever.
TEST(Random, FixedValues) {
  cli::Random zero(0);
  for (uint64_t expected : {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u, 0x06c45d188009454fu,
                            0xf88bb8a8724c81ecu, 0x1b39896a51a8749bu}) {
    EXPECT_EQ(zero.bits(), expected);
  }
  cli::Random other(1234567);
  for (uint64_t expected : {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                            4593380528125082431u, 16408922859458223821u}) {
    EXPECT_EQ(other.bits(), expected);
  }
  cli::Random uniform(0);
  EXPECT_EQ(uniform.uniform(), static_cast<double>(0xe220a8397b1dcdafu >> 11) / 9007199254740992.0);
}

// All 256 codes, against the format as the paper defines it.
TEST(Float8, EveryCodeConvertsBothWays) {
  for (int code = 0; code < 256; ++code) {
    float8_e4m3 number;
    number.bits = static_cast<uint8_t>(code);
    const auto value = static_cast<float>(number);
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if (exponent == 15 && mantissa == 7) {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_EQ(float8_e4m3(value).bits, code);
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    EXPECT_EQ(value, code < 128 ? magnitude : -magnitude) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    EXPECT_EQ(float8_e4m3(value).bits, code);
  }
}

TEST(Float8, RoundsToTheNearestAndTiesToEven) {
  const auto value_of = [](int code) {
    float8_e4m3 number;
    number.bits = static_cast<uint8_t>(code);
    return static_cast<float>(number);
  };
  for (int sign : {0, 128}) {
    for (int code = 0; code < 126; ++code) {  // and the one above it
      const float middle = (value_of(sign + code) + value_of(sign + code + 1)) / 2;  // exact
      const int even = code % 2 == 0 ? code : code + 1;
      EXPECT_EQ(float8_e4m3(middle).bits, sign + even) << code;
      EXPECT_EQ(float8_e4m3(std::nextafter(middle, value_of(sign + code))).bits, sign + code);
      const float above = std::nextafter(middle, value_of(sign + code + 1));
      EXPECT_EQ(float8_e4m3(above).bits, sign + code + 1);
    }
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float beyond : {448.0f, 448.1f, 464.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(static_cast<float>(float8_e4m3(beyond)), 448.0f) << beyond;
    EXPECT_EQ(static_cast<float>(float8_e4m3(-beyond)), -448.0f) << beyond;
  }
  EXPECT_EQ(float8_e4m3(std::numeric_limits<float>::denorm_min()).bits, 0);
  EXPECT_EQ(float8_e4m3(-1e-30f).bits, 128);
}

TEST(Random, Distributions) {
  cli::Random random(3);
  double sum = 0.0, squares = 0.0, least = 1.0, most = 0.0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double normal = random.normal();
    sum += normal;
    squares += normal * normal;
    const double uniform = random.uniform();
    least = std::min(least, uniform);
    most = std::max(most, uniform);
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.015);
  EXPECT_NEAR(squares / kCount, 1.0, 0.015);
  EXPECT_GE(least, 0.0);
  EXPECT_LT(most, 1.0);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) {
    const int64_t value = random.integer(-3, 3);
    ASSERT_TRUE(value >= -3 && value <= 3);
    ++counts[static_cast<size_t>(value + 3)];
  }
  for (int count : counts) EXPECT_NEAR(count, 10000, 500);
  EXPECT_EQ(random.integer(9, 9), 9);
}

// The tests' own tensors: what is set is read back, rounded once, and guards notice strangers.
TEST(HostTensor, RoundsOnceAndReadsBack) {
  const double slightly_above_midpoint = 1.0 + std::ldexp(1.0, -11) + std::ldexp(1.0, -40);
  cli::HostTensor half({2, 3}, VECINA_F16);
  half.set(4, slightly_above_midpoint);
  EXPECT_EQ(half.get(4), 1.0 + std::ldexp(1.0, -10)) << "not by way of float";
  cli::HostTensor brain({2, 3}, VECINA_BF16);
  brain.set(4, 1.0 + std::ldexp(1.0, -8) + std::ldexp(1.0, -40));
  EXPECT_EQ(brain.get(4), 1.0 + std::ldexp(1.0, -7));
  for (int32_t dtype :
       {VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16, VECINA_E4M3, VECINA_I32, VECINA_I64}) {
    for (const cli::Placement placement : {cli::Placement{0, 0}, cli::Placement{3, 1}}) {
      cli::HostTensor tensor({2, 3, 5}, dtype, placement);
      for (int64_t i = 0; i < 30; ++i) tensor.set(i, static_cast<double>(i - 15));
      for (int64_t i = 0; i < 30; ++i) ASSERT_EQ(tensor.get(i), static_cast<double>(i - 15));
      EXPECT_TRUE(tensor.gaps_intact());
      const vecina_tensor view = tensor.view();
      EXPECT_EQ(view.ndim, 3);
      EXPECT_EQ(view.strides[2], 1);
      EXPECT_EQ(view.strides[1], 5 + placement.gap);
    }
  }
}

TEST(HostTensor, NoticesWritesBetweenRows) {
  const cli::HostTensor tensor({3, 4}, VECINA_F32, {2, 1});
  ASSERT_TRUE(tensor.gaps_intact());
  auto* data = static_cast<float*>(tensor.view().data);
  for (int at : {4, 5, 10, 11, -1}) {
    const float before = data[at];
    data[at] = 1.0f;
    EXPECT_FALSE(tensor.gaps_intact()) << at;
    data[at] = before;
    EXPECT_TRUE(tensor.gaps_intact()) << at;
  }
}

TEST(HostTensorDeathTest, FaultsBehindTheEnd) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const cli::HostTensor tensor({3, 4}, VECINA_F32);
  EXPECT_DEATH(
      {
        volatile float* data = static_cast<float*>(tensor.view().data);
        data[12] = 1.0f;
      },
      "");
}

}  // namespace
}  // namespace vecina::tests
