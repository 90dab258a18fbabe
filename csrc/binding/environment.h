// What the addon keeps for one JavaScript environment (the main thread or a worker thread): the error class, and the
// asynchronous calls that have not come back yet.
#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "../runtime/backend.h"

namespace lean::binding {

class Environment {
 public:
  explicit Environment(Napi::Env env);

  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  void set_error_class(Napi::Function constructor) { error_class_ = Napi::Persistent(constructor); }

  // The JavaScript error for a native one: RangeError for a caller's mistake, else LeanAttentionError with a code.
  Napi::Error to_js(std::exception_ptr error);

  // Starts an asynchronous call. `pinned` (the typed arrays it reads and writes) and the backend stay alive until it
  // has ended, whatever JavaScript drops or disposes meanwhile.
  Napi::Promise start(std::shared_ptr<Backend> backend, std::shared_ptr<DecodeCall> call,
                      std::vector<Napi::Object> pinned);

  Napi::FunctionReference device_class;
  Napi::FunctionReference kv_cache_class;
  Napi::FunctionReference plan_class;

 private:
  struct Pending {
    Napi::Promise::Deferred deferred;
    std::vector<Napi::ObjectReference> pinned;
    std::shared_ptr<Backend> backend;
    std::exception_ptr error;
  };

  static void on_ended(Napi::Env env, Napi::Function, Environment* self, Pending* pending);
  using EndedFunction = Napi::TypedThreadSafeFunction<Environment, Pending, &Environment::on_ended>;

  void settle(Napi::Env env, Pending* pending);
  void close();

  Napi::Env env_;
  Napi::FunctionReference error_class_;
  EndedFunction ended_;
  std::unordered_map<Pending*, std::unique_ptr<Pending>> pending_;  // touched on the JavaScript thread only
  std::shared_ptr<std::atomic<bool>> closing_ = std::make_shared<std::atomic<bool>>(false);

  std::mutex mutex_;  // guards in_flight_
  std::condition_variable idle_;
  int64_t in_flight_ = 0;  // calls whose native part has not ended
};

// Runs `body` and turns native exceptions into JavaScript ones.
template <class Body>
auto guarded(Napi::Env env, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Environment::of(env).to_js(std::current_exception());
  }
}

}  // namespace lean::binding
