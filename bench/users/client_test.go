//go:build linux

package users

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// serve makes so many connections to servers that read requests and do as they like.
func serve(t *testing.T, n int, server func(fd int)) []conn {
	t.Helper()
	var conns []conn
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); server(fds[1]) }()
		t.Cleanup(func() {
			unix.Close(fds[0]) // ends the server
			<-done
		})
		conns = append(conns, conn{fd: fds[0], response: len(answer)})
	}
	return conns
}

// answers answers requests, each after a delay, until the connection ends or, if the number is not 0, after so many.
func answers(delay time.Duration, number int) func(int) {
	return func(fd int) {
		defer unix.Close(fd)
		for made := 0; number == 0 || made < number; made++ {
			var b [256]byte
			if n, err := unix.Read(fd, b[:]); err != nil || n == 0 {
				return
			}
			time.Sleep(delay)
			if _, err := unix.Write(fd, []byte(answer)); err != nil {
				return
			}
		}
	}
}

func TestPace(t *testing.T) {
	start := time.Now()
	took, failed, err := pace(t.Context(), serve(t, 4, answers(0, 0)), 1000, 200*time.Millisecond)
	if err != nil || failed != 0 || len(took) != 200 {
		t.Errorf("%d answered, %d failed, %v; want 200 and 0", len(took), failed, err)
	}
	if d := time.Since(start); d < 199*time.Millisecond {
		t.Errorf("it took %v: the requests were made too soon", d)
	}
}

// A server that is too slow for the rate: how long requests wait to be made counts, so the last ones take longest.
func TestPaceCountsFromWhenDue(t *testing.T) {
	took, failed, err := pace(t.Context(), serve(t, 1, answers(10*time.Millisecond, 0)), 1000, 10*time.Millisecond)
	if err != nil || failed != 0 || len(took) != 10 {
		t.Fatalf("%d answered, %d failed, %v; want 10 and 0", len(took), failed, err)
	}
	if last := took[len(took)-1]; last < 10*10*time.Millisecond-10*time.Millisecond || !slices.IsSorted(took) {
		t.Errorf("the last one took %v, expected at least 90 ms", last)
	}
}

// What connections that end leave unanswered has failed, and so has what could not be made any more.
func TestPaceConnectionsEnd(t *testing.T) {
	took, failed, err := pace(t.Context(), serve(t, 2, answers(0, 3)), 1000, 20*time.Millisecond)
	if err != nil || len(took) != 6 || failed != 14 {
		t.Errorf("%d answered, %d failed, %v; want 6 and 14", len(took), failed, err)
	}
}

func TestPaceInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, _, err := pace(ctx, serve(t, 1, answers(0, 0)), 100, time.Minute)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the time is over", err)
	}
}

func TestAnswerLength(t *testing.T) {
	for _, c := range []struct {
		head string
		want int
		err  string
	}{
		{answer, len(answer), ""},
		{"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:  10\r\n\r\n", 61, ""},
		{"HTTP/1.1 200 OK\r\nContent-Le", 0, ""},
		{"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", 0, "expected status 200"},
		{"HTTP/1.1 200 OK\r\n\r\n", 0, "without Content-Length"},
		{"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n", 0, "invalid syntax"},
	} {
		got, err := answerLength([]byte(c.head))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || err == nil && got != c.want {
			t.Errorf("%q: %d, %v; want %d, %q", c.head, got, err, c.want, c.err)
		}
	}
}
