/* Stands in for libcupti: takes what the counter asks for, keeps one subscriber, and fires callbacks when told to. */

#include <stdint.h>
#include <stddef.h>

typedef void (*Callback)(void *user, int domain, uint32_t id, const void *data);
typedef struct {
    int site;
    const char *function;
} Data;

static Callback callback;
static void *user;
static int taken; /* by somebody else */
static int unknown_from = 1 << 20;
static int refusal;
static int subscribed, subscriptions, ends, enabled, wrong_domains;

int
cuptiSubscribe(void **subscriber, Callback given, void *given_user)
{
    if (refusal) {
        return refusal;
    }
    if (taken || subscribed) {
        return 39; /* CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED */
    }
    callback = given;
    user = given_user;
    subscribed = 1;
    subscriptions++;
    *subscriber = &callback;
    return 0;
}

int
cuptiUnsubscribe(void *subscriber)
{
    subscribed = 0;
    ends++;
    enabled = 0;
    return subscriber == &callback ? 0 : 1;
}

int
cuptiEnableCallback(uint32_t enable, void *subscriber, int domain, uint32_t id)
{
    wrong_domains += domain != 1;
    if ((int)id >= unknown_from || subscriber != &callback) {
        return 1; /* CUPTI_ERROR_INVALID_PARAMETER */
    }
    enabled += enable ? 1 : -1;
    return 0;
}

int
cuptiGetResultString(int result, const char **text)
{
    *text = result == 15 ? "CUPTI_ERROR_NOT_INITIALIZED" : "CUPTI_ERROR_OTHER";
    return 0;
}

int
cuptiGetVersion(uint32_t *version)
{
    *version = 130001;
    return 0;
}

/* What tests call. The callback stays known after the end: a late one is what they want to see do nothing. */
void
mock_fire(int domain, uint32_t id, int site, int times)
{
    Data data = {site, "cuSomething"};
    for (int each = 0; each < times && callback != NULL; each++) {
        callback(user, domain, id, &data);
    }
}

void
mock_set(int others, int unknown, int refuse)
{
    taken = others;
    unknown_from = unknown;
    refusal = refuse;
}

int
mock_state(int which)
{
    int state[] = {subscribed, subscriptions, ends, enabled, wrong_domains};
    return state[which];
}
