// The web program is a static web server for test containers. It goes by the name it is called with,
// nginx or httpd, as far as tests look: the line it logs, nginx's process title and pid file.
//
//	web [-port PORT]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	title := strings.Contains(os.Args[0], ": master process")
	name := strings.TrimSuffix(strings.Fields(filepath.Base(os.Args[0]))[0], ":")
	port := flag.Int("port", 80, "TCP port to listen on, at all addresses")
	flag.Parse()
	if name == "nginx" {
		if !title {
			return retitle()
		}
		if err := os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return fmt.Errorf("write pid file: %w", err)
		}
	}
	return serve(name, *port)
}

// retitle executes the program anew, with nginx's title for argv[0].
func retitle() error {
	args := append([]string{"nginx: master process nginx"}, os.Args[1:]...)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	return syscall.Exec(self, args, os.Environ())
}

func serve(name string, port int) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH)
	defer stop()
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Printf("%s: serving on %s", name, l.Addr())
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<h1>Welcome to %s!</h1>\n<p>%s asked %s for %s</p>\n", name, r.RemoteAddr, host, r.URL.Path)
	})}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
