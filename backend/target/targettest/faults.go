// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"fmt"
	"net/http"
	"sync/atomic"
)

// fault stands between a request and its answer. It may carry out the call (act), and it writes what is sent.
type fault func(w http.ResponseWriter, act func() Answer)

// status refuses the call with a status. The rest of the answer is a trap: a client must not use or repeat it.
func (f *fake) status(code int, header ...string) fault {
	return func(w http.ResponseWriter, _ func() Answer) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_ = http.NewResponseController(w).Flush() // so that the body has no length, and net/http's client does not drain it
		_, _ = w.Write(encode(f.refusal(code).Body))
	}
}

// cutBefore breaks the connection before the call is carried out, cutAfter after it.
func cutBefore(http.ResponseWriter, func() Answer) { panic(http.ErrAbortHandler) }

func cutAfter(_ http.ResponseWriter, act func() Answer) {
	act()
	panic(http.ErrAbortHandler)
}

// half writes the status and half of the body; the rest is announced but never sent.
func half(w http.ResponseWriter, act func() Answer) {
	a := act()
	text := encode(a.Body)
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	w.WriteHeader(a.Status)
	_, _ = w.Write(text[:len(text)/2])
	_ = http.NewResponseController(w).Flush()
}

func truncated(w http.ResponseWriter, act func() Answer) {
	half(w, act)
	panic(http.ErrAbortHandler)
}

// blocked never answers; stuck stops in the middle of the answer. Both wait until the test releases them, not until the
// client leaves: the call must return while they are still waiting.
func (f *fake) blocked(arrived func()) fault {
	return func(http.ResponseWriter, func() Answer) {
		arrived()
		<-f.released
		panic(http.ErrAbortHandler)
	}
}

func (f *fake) stuck(arrived func()) fault {
	return func(w http.ResponseWriter, act func() Answer) {
		half(w, act)
		arrived()
		<-f.released
		panic(http.ErrAbortHandler)
	}
}

// after lets n calls through, then applies hurt.
func after(n int64, hurt fault) fault {
	var seen atomic.Int64
	return func(w http.ResponseWriter, act func() Answer) {
		if seen.Add(1) <= n {
			write(w, act())
			return
		}
		hurt(w, act)
	}
}

// raw carries out the call, and answers with its status and a text made by the test.
func raw(text func(good []byte) string) fault {
	return func(w http.ResponseWriter, act func() Answer) {
		a := act()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.Status)
		_, _ = w.Write([]byte(text(encode(a.Body))))
	}
}
