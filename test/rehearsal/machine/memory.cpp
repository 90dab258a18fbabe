#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace lean::rehearsal {

namespace {

constexpr size_t kReserveBytes = size_t{8} << 30;  // address space; pages appear as they are touched
constexpr size_t kKeepBytes = size_t{64} << 20;    // touched memory that clear() leaves mapped
constexpr size_t kAlignment = 256;
constexpr uint8_t kRedZoneByte = 0xfd;

}  // namespace

void poison(void* memory, size_t bytes) {
  auto* words = static_cast<std::byte*>(memory);
  size_t i = 0;
  for (; i + 2 <= bytes; i += 2) memcpy(words + i, &kPoison, 2);
  if (i < bytes) words[i] = std::byte{0x7f};
}

void hide_red_zone([[maybe_unused]] const std::byte* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, bytes);
#endif
}

void reveal_red_zone([[maybe_unused]] const std::byte* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
#endif
}

void fill_red_zone(std::byte* begin, size_t bytes) {
  reveal_red_zone(begin, bytes);
  memset(begin, kRedZoneByte, bytes);
  hide_red_zone(begin, bytes);
}

bool red_zone_whole(const std::byte* begin, size_t bytes) {
  reveal_red_zone(begin, bytes);
  const bool whole = std::all_of(begin, begin + bytes, [](std::byte b) { return b == std::byte{kRedZoneByte}; });
  hide_red_zone(begin, bytes);
  return whole;
}

DeviceMemory::DeviceMemory() {
  void* base = mmap(nullptr, kReserveBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(base);
}

DeviceMemory::~DeviceMemory() {
  clear();
  munmap(base_, kReserveBytes);
}

Buffer& DeviceMemory::allocate(size_t bytes, Use use, const std::string& name) {
  const size_t begin = (next_ + kRedZoneBytes + kAlignment - 1) / kAlignment * kAlignment;
  if (begin + bytes + kRedZoneBytes > kReserveBytes) throw std::bad_alloc();
  Buffer& buffer = buffers_.emplace_back(Buffer{base_ + begin, bytes, name, use});
  next_ = begin + bytes + kRedZoneBytes;
  fill_red_zone(buffer.begin - kRedZoneBytes, kRedZoneBytes);
  fill_red_zone(buffer.end(), kRedZoneBytes);
  poison(buffer.begin, bytes);
  return buffer;
}

void DeviceMemory::clear() {
  reveal_red_zone(base_, next_);
  if (next_ > kKeepBytes) madvise(base_ + kKeepBytes, next_ - kKeepBytes, MADV_DONTNEED);
  buffers_.clear();
  last_found_ = nullptr;
  next_ = 0;
}

Buffer* DeviceMemory::find(const void* address, size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(address);
  const auto holds = [&](const Buffer& b) { return begin >= b.begin && begin + bytes <= b.end(); };
  if (last_found_ && holds(*last_found_)) return last_found_;
  auto after = std::upper_bound(buffers_.begin(), buffers_.end(), begin,
                                [](const std::byte* a, const Buffer& b) { return a < b.begin; });
  if (after == buffers_.begin() || !holds(*--after)) return nullptr;
  return last_found_ = &*after;
}

std::string DeviceMemory::locate(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  std::string nearest = "far from every buffer";
  ptrdiff_t distance = 1 << 20;
  for (const Buffer& b : buffers_) {
    if (at >= b.begin && at < b.end())
      return "byte " + std::to_string(at - b.begin) + " of '" + b.name + "' (" + std::to_string(b.bytes) + " bytes)";
    const ptrdiff_t before = b.begin - at, after = at - b.end();
    if (before > 0 && before < distance) {
      distance = before;
      nearest = std::to_string(before) + " bytes before '" + b.name + "'";
    }
    if (after >= 0 && after < distance) {
      distance = after;
      nearest =
          std::to_string(after) + " bytes past the end of '" + b.name + "' (" + std::to_string(b.bytes) + " bytes)";
    }
  }
  return nearest;
}

std::string DeviceMemory::damaged_red_zone() const {
  for (const Buffer& b : buffers_) {
    if (!red_zone_whole(b.begin - kRedZoneBytes, kRedZoneBytes)) return "before '" + b.name + "'";
    if (!red_zone_whole(b.end(), kRedZoneBytes)) return "after '" + b.name + "'";
  }
  return {};
}

}  // namespace lean::rehearsal
