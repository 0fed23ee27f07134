// SPDX-License-Identifier: MIT
#include "cpu/peak.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/cores.h"
#include "cpu/matrix_tiles.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/peak.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 12 sums in named registers: 2 units x 4 or 5 cycles of latency need at most 10, and an array of
// them would be spilled by g++ 12. Returns the multiplications and additions done.
double run_multiply_adds(int repeats, float seed, float* sink) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, 0.9999f), y = hn::Set(d, seed);
  // Different beginnings: equal sums could be computed once.
  const auto begin = [&](float i) HWY_ATTR { return hn::Set(d, seed * i); };
  auto s0 = begin(0), s1 = begin(1), s2 = begin(2), s3 = begin(3), s4 = begin(4), s5 = begin(5);
  auto s6 = begin(6), s7 = begin(7), s8 = begin(8), s9 = begin(9), s10 = begin(10), s11 = begin(11);
  for (int i = 0; i < repeats; ++i) {
    s0 = hn::MulAdd(s0, x, y);
    s1 = hn::MulAdd(s1, x, y);
    s2 = hn::MulAdd(s2, x, y);
    s3 = hn::MulAdd(s3, x, y);
    s4 = hn::MulAdd(s4, x, y);
    s5 = hn::MulAdd(s5, x, y);
    s6 = hn::MulAdd(s6, x, y);
    s7 = hn::MulAdd(s7, x, y);
    s8 = hn::MulAdd(s8, x, y);
    s9 = hn::MulAdd(s9, x, y);
    s10 = hn::MulAdd(s10, x, y);
    s11 = hn::MulAdd(s11, x, y);
  }
  const auto sum = hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)),
                           hn::Add(hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)),
                                   hn::Add(hn::Add(s8, s9), hn::Add(s10, s11))));
  *sink = hn::GetLane(sum);
  return 24.0 * static_cast<double>(hn::Lanes(d)) * repeats;
}

// 2^x as the softmax computes it; returns how many.
double run_exponentials(const float* from, float* to, size_t count) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < count; i += hn::Lanes(d)) {
    hn::Store(exp2_negative(d, hn::Load(d, from + i)), d, to + i);
  }
  return static_cast<double>(count);
}

// Reads `count` numbers; returns bytes.
double run_reads(const float* from, size_t count, float* sink) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (size_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = hn::Add(s0, hn::Load(d, from + i));
    s1 = hn::Add(s1, hn::Load(d, from + i + lanes));
    s2 = hn::Add(s2, hn::Load(d, from + i + 2 * lanes));
    s3 = hn::Add(s3, hn::Load(d, from + i + 3 * lanes));
  }
  *sink = hn::GetLane(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
  return static_cast<double>(count) * sizeof(float);
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
namespace {

HWY_EXPORT(run_multiply_adds);
HWY_EXPORT(run_exponentials);
HWY_EXPORT(run_reads);
HWY_EXPORT(target_name);

// Units of work a nanosecond: the best of short runs within 100 ms, so that neither another process
// nor a frequency change counts.
template <typename Run>
double best_rate(Run run) {
  using Clock = std::chrono::steady_clock;
  double best = 0.0;
  const auto end = Clock::now() + std::chrono::milliseconds(100);
  while (Clock::now() < end) {
    const auto start = Clock::now();
    const double work = run();
    const std::chrono::duration<double, std::nano> time = Clock::now() - start;
    best = std::max(best, work / time.count());
  }
  return best;
}

struct Known {
  std::mutex mutex;
  std::optional<Peak> peak;
};
Known& known() {
  static Known known;
  return known;
}

std::string& problem_sentence() {
  static std::string sentence;
  return sentence;
}

// Kernels of AVX-512 multiply tiles by AMX where it is, unless AVX3 itself was asked for, and by an
// emulation if that was. Returns the names of what may be asked for.
std::string choose_matrix_tiles(const std::string& name) {
  std::string known;
  for (const MatrixTiles tiles : {MatrixTiles::amx, MatrixTiles::emulated}) {
    const bool is_amx = tiles == MatrixTiles::amx;
    const bool is_wanted = name == name_of(tiles) || (is_amx && name.empty());
    if (is_amx && (!has_matrix_tiles() || (is_wanted && !request_matrix_tiles()))) continue;
    known += std::string(", ") + name_of(tiles);
    if (is_wanted) choose_matrix_tiles(tiles);
  }
  return known;
}

}  // namespace

void choose_target() {
  static std::once_flag once;
  std::call_once(once, [] {
    const char* wanted = std::getenv("VECINA_CPU_TARGET");
    std::string name = wanted ? wanted : "";
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    int64_t chosen = 0;
    std::string known;
    for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0;
         targets &= targets - 1) {
      const int64_t target = targets & -targets;
      known += (known.empty() ? "" : ", ") + std::string(hwy::TargetName(target));
      if (name == hwy::TargetName(target)) chosen = target;
      if (target != HWY_AVX3) continue;
      known += choose_matrix_tiles(name);
      if (!name.empty() && name == name_of(chosen_matrix_tiles())) chosen = target;
    }
    if (known.empty()) {
      problem_sentence() =
          "this CPU has none of the instruction sets that the kernels were compiled for.";
    } else if (!name.empty() && chosen == 0) {
      const bool is_amx = name == name_of(MatrixTiles::amx);
      problem_sentence() = fmt::format(
          "VECINA_CPU_TARGET is '{}'; this CPU and build have {}.{}", wanted, known,
          is_amx ? " AMX needs a CPU with tiles of bfloat16, and Linux to lend them." : "");
    } else if (chosen != 0) {
      hwy::SetSupportedTargetsForTest(chosen);
    }
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  });
}

std::string target_problem() { return problem_sentence(); }

Peak measure_peak() {
  constexpr size_t kL1Numbers = 4096;               // 16 KiB
  constexpr size_t kL2Numbers = 64 * 1024;          // 256 KiB
  constexpr size_t kL3Numbers = 1024 * 1024;        // 4 MiB
  constexpr size_t kFarNumbers = 16 * 1024 * 1024;  // 64 MiB
  constexpr size_t kAlignedTo = 64;
  std::vector<float> storage(kFarNumbers + kAlignedTo, 0.0f);
  void* aligned = storage.data();
  size_t space = storage.size() * sizeof(float);
  float* from =
      static_cast<float*>(std::align(kAlignedTo, kFarNumbers * sizeof(float), aligned, space));
  float* to = from + kL2Numbers;
  for (size_t i = 0; i < kL2Numbers; ++i) from[i] = -0.01f * static_cast<float>(i % 1000);
  volatile float seed = 1e-4f;
  float sink = 0.0f;
  const auto multiply_adds = HWY_DYNAMIC_DISPATCH(run_multiply_adds);
  const auto exponentials = HWY_DYNAMIC_DISPATCH(run_exponentials);
  const auto reads = HWY_DYNAMIC_DISPATCH(run_reads);
  const auto read_rate = [&](size_t numbers) {
    return best_rate([&] { return reads(from, numbers, &sink); });
  };
  Peak peak;
  peak.fma_gflops = best_rate([&] { return multiply_adds(20000, seed, &sink); });
  peak.exp_gops = best_rate([&] { return exponentials(from, to, kL1Numbers / 2); });
  if (chosen_matrix_tiles() == MatrixTiles::amx) {
    peak.tile_gflops = best_rate([] { return multiply_matrix_tiles(2000); });
  }
  peak.l1_gbs = read_rate(kL1Numbers);
  peak.l2_gbs = read_rate(kL2Numbers);
  peak.l3_gbs = read_rate(kL3Numbers);
  peak.memory_gbs = read_rate(kFarNumbers);
  volatile float kept = sink;  // the work has a reader
  static_cast<void>(kept);
  const std::lock_guard lock(known().mutex);
  known().peak = peak;
  return peak;
}

std::optional<Peak> known_peak() {
  const std::lock_guard lock(known().mutex);
  return known().peak;
}

std::string json_of(const Peak& peak) {
  std::string tiles;
  if (peak.tile_gflops > 0.0) {
    tiles = fmt::format(R"("tile_gflops_per_core_bf16": {:.1f}, )", peak.tile_gflops);
  }
  return fmt::format(
      R"({{"fma_gflops_per_core_f32": {:.1f}, "exp_gops": {:.2f}, "l1_gbs": {:.1f}, )"
      R"("l2_gbs": {:.1f}, "l3_gbs": {:.1f}, "memory_gbs": {:.1f}, {}"target": "{}"}})",
      peak.fma_gflops, peak.exp_gops, peak.l1_gbs, peak.l2_gbs, peak.l3_gbs, peak.memory_gbs, tiles,
      HWY_DYNAMIC_DISPATCH(target_name)());
}

}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
