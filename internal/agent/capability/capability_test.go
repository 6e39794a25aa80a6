package capability

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// What a handler tells is what who asks gets.
func TestAsk(t *testing.T) {
	want := Answer{
		Version: "v1", VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, TimeMS: 1,
		Cookies: &Cookies{Version: 1, Key: "0011", IPv4: true, WindowScale: true, NAT: []Mapping{
			{VIP: netip.MustParseAddrPort("192.0.2.10:80"), Local: netip.MustParseAddrPort("10.0.0.11:8080")},
		}},
	}
	got, err := Ask(t.Context(), serve(t, Handler(func() Answer { return want })))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Whatever else listens there, or does not, is told in words.
func TestAskErrors(t *testing.T) {
	closed := httptest.NewServer(nil)
	nobody := netip.MustParseAddrPort(closed.Listener.Addr().String())
	closed.Close()
	hang := make(chan struct{})
	for _, c := range []struct {
		name, want string
		to         netip.AddrPort
	}{
		{"nobody", "nothing listens", nobody},
		{"another server", "404", serve(t, http.NotFoundHandler())},
		{"a redirect", "302", serve(t, http.RedirectHandler("http://"+nobody.String(), http.StatusFound))},
		{"no JSON", "is no agent", serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }))},
		{"too long", "is no agent", serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"version":"` + strings.Repeat("x", maxAnswer) + `"}`))
		}))},
		{"a closed connection", "--source", serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))},
		{"silence", "no answer", serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := Ask(ctx, c.to)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	close(hang)
}
