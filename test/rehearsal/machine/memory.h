// The rehearsal's global memory: named buffers in one reserved address range, a red zone on either side of each.
//
// A buffer begins at a multiple of 256 bytes, as cudaMalloc's do, and ends at its exact last byte: the red zone follows
// at once. Red zones hold a pattern that is checked after a launch, are known to AddressSanitizer, and refuse every
// access that the machine sees. Fresh memory is NaN in every type: a result that depends on what nobody wrote shows
// itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>

namespace lean::rehearsal {

// 0x7fff is a NaN in float16 and bfloat16, 0x7fff7fff in float32; as an index it is absurd.
inline constexpr uint16_t kPoison = 0x7fff;
void poison(void* memory, size_t bytes);

enum class Use {
  kInput,    // read only: a write is a fault; never written in a launch, so never part of a race
  kOutput,   // written, and read back only after it was written
  kScratch,  // as output
  kCounter,  // kept between launches: initialised, read and written
};

struct Buffer {
  std::byte* begin;
  size_t bytes;
  std::string name;
  Use use;
  int64_t bytes_copied = 0;  // by asynchronous copies out of it, in the current launch

  std::byte* end() const { return begin + bytes; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(begin);
  }
};

class DeviceMemory {
 public:
  DeviceMemory();
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Poisoned. The reference stays valid until clear().
  Buffer& allocate(size_t bytes, Use use, const std::string& name);
  void clear();

  bool contains(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(base_) < next_;
  }
  // The buffer that holds all of [address, address + bytes); null: no single one does.
  Buffer* find(const void* address, size_t bytes);
  // "3 bytes past the end of 'page_table'"
  std::string locate(const void* address) const;
  // The first damaged red zone, described; empty: all whole.
  std::string damaged_red_zone() const;
  std::deque<Buffer>& buffers() { return buffers_; }

 private:
  std::byte* base_;
  size_t next_ = 0;
  std::deque<Buffer> buffers_;  // by address
  Buffer* last_found_ = nullptr;
};

// A red zone, for whoever carves memory.
inline constexpr size_t kRedZoneBytes = 256;
void fill_red_zone(std::byte* begin, size_t bytes);
bool red_zone_whole(const std::byte* begin, size_t bytes);
void hide_red_zone(const std::byte* begin, size_t bytes);  // from AddressSanitizer, where it runs
void reveal_red_zone(const std::byte* begin, size_t bytes);

}  // namespace lean::rehearsal
