// SPDX-License-Identifier: MIT
// FNV-1a in 128 bits: names for cache entries, which also hold what they were named after, so that
// it need not withstand an attacker.
#ifndef VECINA_CUDA_DIGEST_H_
#define VECINA_CUDA_DIGEST_H_

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace vecina::internal::cuda {

class Digest {
 public:
  // Each piece counts with its length: ("ab", "c") and ("a", "bc") differ.
  Digest& add(std::string_view bytes) {
    for (const char byte : bytes) add_byte(static_cast<unsigned char>(byte));
    for (size_t size = bytes.size(), i = 0; i < sizeof(size); ++i) {
      add_byte(static_cast<unsigned char>(size >> (8 * i)));
    }
    return *this;
  }
  std::string hex() const {
    return fmt::format("{:016x}{:016x}", static_cast<uint64_t>(state_ >> 64),
                       static_cast<uint64_t>(state_));
  }

 private:
  __extension__ typedef unsigned __int128 Word;
  void add_byte(unsigned char byte) {
    constexpr Word kPrime = (Word{1} << 88) + 0x13b;
    state_ = (state_ ^ byte) * kPrime;
  }
  Word state_ = (Word{0x6c62272e07bb0142u} << 64) + 0x62b821756295c58du;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_DIGEST_H_
