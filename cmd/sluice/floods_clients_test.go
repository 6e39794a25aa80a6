//go:build linux && floods

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// Regular clients: so many of a class, each with an address of its own, which does a request every requestEvery, and has failed
// when it has no answer within requestTimeout.
const (
	classSize      = 50
	requestEvery   = 500 * time.Millisecond
	requestTimeout = 2 * time.Second
)

// clientClass is a class of regular clients.
type clientClass struct {
	name string
	url  string
	each []*http.Client
}

// newClients makes clients that have made no connection yet. They keep one each if they are long-lived, else they make one for
// each request.
func newClients(ns *testenv.Namespace, name string, to netip.AddrPort, sources []netip.Addr, longLived bool) *clientClass {
	c := &clientClass{name: name, url: fmt.Sprintf("http://%v/name", to)}
	for _, source := range sources {
		transport := (&testenv.Dialer{Namespace: ns, Source: source}).Transport()
		transport.DisableKeepAlives = !longLived
		c.each = append(c.each, &http.Client{Transport: transport})
	}
	return c
}

func (c *clientClass) close() {
	for _, client := range c.each {
		client.CloseIdleConnections()
	}
}

// request has all clients do requests for some time, and returns when the last one is answered or has failed.
func (c *clientClass) request(duration time.Duration) *requests {
	var mu sync.Mutex
	r := &requests{}
	start := time.Now()
	var all sync.WaitGroup
	for i, client := range c.each {
		all.Go(func() {
			next := start.Add(requestEvery * time.Duration(i) / time.Duration(len(c.each)))
			for next.Before(start.Add(duration)) {
				time.Sleep(time.Until(next))
				began := time.Now()
				err := fetch(client, c.url)
				took := time.Since(began)
				mu.Lock()
				r.total++
				if err == nil {
					r.took = append(r.took, took)
				}
				mu.Unlock()
				if next = next.Add(requestEvery); next.Before(began.Add(took)) {
					next = began.Add(took) // what is missed is not made up for
				}
			}
		})
	}
	all.Wait()
	slices.Sort(r.took)
	return r
}

func fetch(client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// requests is how the requests of a class fared in some time.
type requests struct {
	took  []time.Duration // those that succeeded, the fastest first
	total int
}

func (r *requests) add(o *requests) {
	r.took = append(r.took, o.took...)
	slices.Sort(r.took)
	r.total += o.total
}

// succeeded is which part did.
func (r *requests) succeeded() float64 { return float64(len(r.took)) / float64(max(r.total, 1)) }

// of is the goodput as a part of that of other requests, which had as much time.
func (r *requests) of(o *requests) float64 {
	return float64(len(r.took)) / float64(max(len(o.took), 1))
}

// at is within which time this part of those that succeeded did.
func (r *requests) at(part float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[int(part*float64(len(r.took)-1))].Round(10 * time.Microsecond)
}

// String is the columns of the table.
func (r *requests) String() string {
	return fmt.Sprintf("%d\t%.2f %%\t%v\t%v", r.total, 100*r.succeeded(), r.at(0.5), r.at(0.99))
}
