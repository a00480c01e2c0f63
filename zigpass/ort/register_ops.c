/* Registers custom ops in domain "zigpass" with onnxruntime. The ops themselves are made by zigpass.ort in Python; this
 * file is the one thing that onnxruntime wants as a library. It needs no headers of onnxruntime: the slots below belong
 * to the part of its function table that never changes ("DO NOT MODIFY ABOVE" in onnxruntime_c_api.h). */

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { API_VERSION = 12, CREATE_DOMAIN = 26, ADD_OP = 27, ADD_DOMAIN = 28 };

typedef struct {
  const void *const *(*get_api)(unsigned version);
  const char *(*get_version_string)(void);
} ApiBase;

static void **ops;
static long num_ops;

EXPORT void zigpass_set_ops(void **table, long count) {
  ops = table;
  num_ops = count;
}

EXPORT void *RegisterCustomOps(void *session_options, const ApiBase *base) {
  const void *const *api = base->get_api(API_VERSION);
  void *domain = 0;
  void *status = ((void *(*)(const char *, void **))api[CREATE_DOMAIN])("zigpass", &domain);
  for (long i = 0; !status && i < num_ops; i++)
    status = ((void *(*)(void *, const void *))api[ADD_OP])(domain, ops[i]);
  return status ? status : ((void *(*)(void *, void *))api[ADD_DOMAIN])(session_options, domain);
}
