#!/bin/bash
# title: javac and a JVM: thread pool, virtual memory, sockets, files, processes, compilers, dumps
# packages: openjdk-17-jdk-headless
set -euo pipefail

cat >Main.java <<'JAVA'
import java.io.*;
import java.lang.management.ManagementFactory;
import java.net.*;
import java.nio.*;
import java.nio.channels.*;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.security.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Main {
    interface Test { void run() throws Exception; }

    static void check(boolean good, String why) { if (!good) throw new AssertionError(why); }

    static void test(String name, Test test) {
        String result = "ok";
        try { test.run(); } catch (Throwable why) { result = "failed"; System.err.println(name); why.printStackTrace(); }
        System.out.println(result + " " + name);
    }

    public static void main(String[] arguments) throws Exception {
        Path dir = Files.createTempDirectory("jvm");
        test("thread pool", () -> {
            ExecutorService pool = Executors.newFixedThreadPool(16);
            AtomicInteger sum = new AtomicInteger();
            List<Future<?>> all = new ArrayList<>();
            for (int i = 0; i < 1000; i++) { int n = i; all.add(pool.submit(() -> sum.addAndGet(n))); }
            for (Future<?> one : all) one.get();
            pool.shutdown();
            check(sum.get() == 499500, "" + sum);
        });
        test("fork-join and streams", () -> check(
            java.util.stream.LongStream.range(0, 1_000_001).parallel().sum() == 500_000_500_000L, "sum"));
        test("TCP server", () -> {
            try (ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
                Thread echo = new Thread(() -> {
                    try { for (int i = 0; i < 20; i++) try (Socket s = server.accept()) { s.getOutputStream().write(s.getInputStream().read()); } }
                    catch (IOException why) { throw new UncheckedIOException(why); }
                });
                echo.start();
                for (int i = 0; i < 20; i++)
                    try (Socket s = new Socket(server.getInetAddress(), server.getLocalPort())) {
                        s.getOutputStream().write(i);
                        check(s.getInputStream().read() == i, "echo");
                    }
                echo.join();
            }
        });
        test("selector", () -> {
            try (Selector selector = Selector.open(); ServerSocketChannel server = ServerSocketChannel.open()) {
                server.bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0)).configureBlocking(false);
                server.register(selector, SelectionKey.OP_ACCEPT);
                try (SocketChannel client = SocketChannel.open(server.getLocalAddress())) { check(selector.select(5000) == 1, "select"); }
            }
        });
        test("Unix socket", () -> {
            UnixDomainSocketAddress at = UnixDomainSocketAddress.of(dir.resolve("socket"));
            try (ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
                server.bind(at);
                try (SocketChannel client = SocketChannel.open(at); SocketChannel peer = server.accept()) {
                    client.write(ByteBuffer.wrap("x".getBytes()));
                    check(peer.read(ByteBuffer.allocate(1)) == 1, "read");
                }
            }
        });
        test("UDP", () -> {
            try (DatagramSocket one = new DatagramSocket(0, InetAddress.getLoopbackAddress()); DatagramSocket two = new DatagramSocket()) {
                two.send(new DatagramPacket(new byte[] {1}, 1, one.getLocalSocketAddress()));
                one.setSoTimeout(5000);
                one.receive(new DatagramPacket(new byte[1], 1));
            }
        });
        test("HTTP server and client", () -> {
            var server = com.sun.net.httpserver.HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
            server.createContext("/", exchange -> { exchange.sendResponseHeaders(200, 2); exchange.getResponseBody().write("hi".getBytes()); exchange.close(); });
            server.start();
            var uri = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
            var answer = java.net.http.HttpClient.newHttpClient().send(java.net.http.HttpRequest.newBuilder(uri).build(),
                java.net.http.HttpResponse.BodyHandlers.ofString());
            server.stop(0);
            check(answer.body().equals("hi"), answer.body());
        });
        test("files and attributes", () -> {
            Path file = Files.writeString(dir.resolve("file"), "text");
            Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rw-r-----"));
            Files.createSymbolicLink(dir.resolve("link"), file);
            Files.createLink(dir.resolve("hard"), file);
            Files.setLastModifiedTime(file, FileTime.fromMillis(5000));
            Files.copy(file, dir.resolve("copy"), StandardCopyOption.COPY_ATTRIBUTES);
            Files.move(dir.resolve("copy"), dir.resolve("moved"), StandardCopyOption.ATOMIC_MOVE);
            check(Files.getLastModifiedTime(dir.resolve("moved")).toMillis() == 5000, "time");
            check((int) Files.getAttribute(file, "unix:nlink") == 2, "links");
        });
        test("a user attribute", () -> {
            var view = Files.getFileAttributeView(dir.resolve("file"), UserDefinedFileAttributeView.class);
            view.write("note", ByteBuffer.wrap("x".getBytes()));
            check(view.size("note") == 1, "size");
        });
        test("memory-mapped file", () -> {
            try (FileChannel file = FileChannel.open(dir.resolve("map"), StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
                MappedByteBuffer map = file.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
                map.putInt(0, 42);
                map.force();
                check(file.map(FileChannel.MapMode.READ_ONLY, 0, 4).getInt() == 42, "map");
            }
        });
        test("a file lock", () -> {
            try (FileChannel file = FileChannel.open(dir.resolve("map"), StandardOpenOption.WRITE); FileLock lock = file.tryLock()) { check(lock != null, "lock"); }
        });
        test("a watched directory", () -> {
            try (WatchService watch = FileSystems.getDefault().newWatchService()) {
                dir.register(watch, StandardWatchEventKinds.ENTRY_CREATE);
                Files.createFile(dir.resolve("new"));
                check(watch.poll(10, TimeUnit.SECONDS) != null, "no event");
            }
        });
        test("a process", () -> {
            Process child = new ProcessBuilder("sh", "-c", "cat; exit 3").start();
            child.getOutputStream().write("in".getBytes());
            child.getOutputStream().close();
            check(new String(child.getInputStream().readAllBytes()).equals("in") && child.waitFor() == 3, "child");
        });
        test("process handles", () -> {
            Process child = new ProcessBuilder("sleep", "100").start();
            check(ProcessHandle.current().children().anyMatch(one -> one.pid() == child.pid()), "children");
            child.destroy();
            check(child.waitFor() == 143, "destroy");
        });
        test("secure random", () -> check(SecureRandom.getInstance("NativePRNG").generateSeed(32).length == 32, ""));
        test("digest", () -> check(HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest()).startsWith("e3b0c442"), ""));
        test("time zones", () -> check(java.time.ZoneId.of("Europe/Berlin") != null, ""));
        test("the compiler from inside", () -> {
            Path source = Files.writeString(dir.resolve("Inner.java"), "public class Inner { public static int f() { return 5; } }");
            check(javax.tools.ToolProvider.getSystemJavaCompiler().run(null, null, System.err, source.toString()) == 0, "javac");
            try (URLClassLoader loader = new URLClassLoader(new URL[] {dir.toUri().toURL()})) { check((int) loader.loadClass("Inner").getMethod("f").invoke(null) == 5, "f"); }
        });
        test("direct memory and garbage", () -> {
            List<byte[]> some = new ArrayList<>();
            for (int i = 0; i < 200; i++) { some.add(new byte[1 << 20]); if (some.size() > 20) some.clear(); }
            System.gc();
            check(ByteBuffer.allocateDirect(8 << 20).capacity() == 8 << 20, "");
        });
        test("management beans", () -> check(ManagementFactory.getThreadMXBean().getThreadCount() > 0
            && ManagementFactory.getOperatingSystemMXBean().getAvailableProcessors() > 0, ""));
        System.out.println(Runtime.getRuntime().availableProcessors() + " processors");
    }
}
JAVA
if javac Main.java >&2; then echo 'ok javac'; else echo 'failed javac'; fi
java -Xmx512m Main
for collector in Serial Parallel G1 Z Shenandoah; do
    if java -XX:+UnlockExperimentalVMOptions -XX:+Use${collector}GC -Xmx256m -version >&2; then echo "ok collector $collector"; else echo "failed collector $collector"; fi
done
cat >Sleep.java <<'JAVA'
public class Sleep { public static void main(String[] a) throws Exception { System.out.println("up"); Thread.sleep(600000); } }
JAVA
javac Sleep.java
coproc JVM { exec java -Xmx128m Sleep; }
read -r _ <&"${JVM[0]}"
for command in "jcmd $JVM_PID VM.version" "jstack $JVM_PID" "jmap -histo $JVM_PID" "jinfo -flag MaxHeapSize $JVM_PID" "jps"; do
    if $command >&2; then echo "ok ${command%% *}"; else echo "failed ${command%% *}"; fi
done
kill "$JVM_PID"
if jshell -s - <<<'System.out.println(6 * 7)' 2>&1 | tee /dev/stderr | grep -q 42; then echo 'ok jshell'; else echo 'failed jshell'; fi
if jar --create --file a.jar ./*.class && java -cp a.jar Main >/dev/null; then echo 'ok jar'; else echo 'failed jar'; fi
if jlink --add-modules java.base --output image >&2 && image/bin/java -version >&2; then echo 'ok jlink'; else echo 'failed jlink'; fi
